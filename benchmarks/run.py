"""Runs every benchmark and renders the results; what is in docs/results already is not measured again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ORDER = (
    "import_time",
    "time_shift_controlled",
    "bdia_controlled",
    "bdia_fashion",
    "time_shift_fashion",
    "emoji_quality",
    "emoji_editing",
    "ant_controlled",
    "scalelong_controlled",
    "training_latents",
    "emoji_erasing",
    "snoopi_controlled",
    "emoji_one_step",
    "app_limits",
    "bt2",
    "ibcl",
    "cuber",
    "cuber_emoji",
    "rws",
    "rws_severities",
    "rws_fashion",
    "nbpo",
    "ef21w",
    "causal_minimax",
    "fedka",
    "dbpm",
    "step_dpo",
    "forwardgnn",
    "w2pgnn",
    "biper",
    "biper_fashion",
    "downstream_scaling",
    "eeg_transfer",
    "odice",
    "render",
)

if __name__ == "__main__":
    for name in ORDER:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True)
