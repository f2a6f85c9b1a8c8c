"""What `import dmkit` costs beside the Diffusers pieces it stands on: a ratio, interleaved in one run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from _results import Cells

STATEMENTS = {
    "diffusers": "import torch; from diffusers import DDIMScheduler",
    "dmkit": "import torch; from diffusers import DDIMScheduler; import dmkit",
    "dmkit_alone": "import dmkit",
}
ROUNDS = 7


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(ROUNDS):
        for name, statement in STATEMENTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["diffusers"])
    cells = Cells(
        "import_time", {"statements": STATEMENTS, "rounds": ROUNDS, "figure": "median ratio to diffusers"}
    )
    for name, times in seconds.items():
        cells.record(name, round(statistics.median(times) / base, 4))
    print(cells.read())


if __name__ == "__main__":
    main()
