"""What a process of `test_ef21w_training.py` runs, under torchrun: python ef21w_workers.py FOLDER."""

import json
import sys
from pathlib import Path

import pytest
from accelerate import PartialState

from dmkit.auxiliary.communication.ef21w.training import Arguments, run
from dmkit.training.arguments import TrainingArguments


def training(output: Path, **changes) -> TrainingArguments:
    values = {
        "output_dir": str(output),
        "train_batch_size": 750,  # all rows of each of two workers
        "max_train_steps": 25,
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


def main() -> None:
    folder, state = Path(sys.argv[1]), PartialState(cpu=True)
    ways = {
        "plain": {},
        "whole": {"comm_hook": "ef21", "comm_ratio": 1.0},
        "ef21": {"comm_hook": "ef21", "comm_ratio": 0.01},
        "topk": {"comm_hook": "topk", "comm_ratio": 0.01},
    }
    for name in ("plain", "ef21", "topk"):
        ways[f"{name}, long"] = {**ways[name], "max_train_steps": 300}
    figures = {}
    for name, changes in ways.items():
        figures[name] = run(Arguments(hidden=0, watch_every=0), training(folder / name, **changes))
    with pytest.raises(ValueError, match="3 workers cannot be shared equally by 2 processes"):
        run(Arguments(workers=3), training(folder / "no"))
    if state.is_main_process:
        (folder / "figures.json").write_text(json.dumps(figures))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
