"""Arguments that every training script shares, named as in Diffusers' example scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from diffusers.optimization import SchedulerType

from ..errors import FileFormatError, unknown_name

# `piecewise_constant` needs rules that there is no argument for.
SCHEDULES = [kind.value for kind in SchedulerType if kind.value != "piecewise_constant"]
TRACKERS = ("none", "all", *LOGGER_TYPE_TO_CLASS)
OPTIMIZERS = ("adamw", "sgd")
COMM_HOOKS = ("none", "ef21", "topk")


def hint(text: str) -> dict[str, str]:
    """Metadata of a dataclass's field that becomes a flag: what `--help` says of it."""
    return {"help": text}


@dataclass
class TrainingArguments:
    """How to train; what is trained is the task's own matter."""

    output_dir: str = field(default="outputs/train", metadata=hint("Where checkpoints and the model go."))
    seed: int = field(default=0, metadata=hint("Fixes weights, data order and noise."))
    train_batch_size: int = field(default=16, metadata=hint("Examples a process sees in one micro-batch."))
    gradient_accumulation_steps: int = field(default=1, metadata=hint("Micro-batches in one optimiser step."))
    num_epochs: int = field(
        default=100, metadata=hint("Passes over the data, unless max_train_steps is given.")
    )
    max_train_steps: int | None = field(default=None, metadata=hint("Optimiser steps in all."))
    dataloader_num_workers: int = field(
        default=0, metadata=hint("Loader processes; 0 loads in the main one.")
    )
    learning_rate: float = field(default=1e-4, metadata=hint("Learning rate after the warm-up."))
    lr_scheduler: str = field(
        default="cosine", metadata=hint("A name of diffusers.optimization.get_scheduler.")
    )
    lr_warmup_steps: int = field(default=500, metadata=hint("Steps of linear warm-up."))
    lr_num_cycles: int = field(
        default=1, metadata=hint("Restarts of cosine_with_restarts, which starts so many times.")
    )
    lr_power: float = field(default=1.0, metadata=hint("Power of polynomial."))
    optimizer: str = field(default="adamw", metadata=hint("adamw or sgd."))
    sgd_momentum: float = field(default=0.0, metadata=hint("SGD's momentum."))
    sgd_weight_decay: float = field(default=0.0, metadata=hint("SGD's weight decay."))
    adam_beta1: float = field(default=0.95, metadata=hint("AdamW's beta1."))
    adam_beta2: float = field(default=0.999, metadata=hint("AdamW's beta2."))
    adam_weight_decay: float = field(default=1e-6, metadata=hint("AdamW's weight decay."))
    adam_epsilon: float = field(default=1e-8, metadata=hint("AdamW's epsilon."))
    max_grad_norm: float = field(default=1.0, metadata=hint("Clip the gradient's norm; 0 turns it off."))
    use_ema: bool = field(default=False, metadata=hint("Keep an average of the weights and save that."))
    ema_inv_gamma: float = field(default=1.0, metadata=hint("EMA warm-up's inverse gamma."))
    ema_power: float = field(default=0.75, metadata=hint("EMA warm-up's power."))
    ema_max_decay: float = field(default=0.9999, metadata=hint("Largest EMA decay."))
    mixed_precision: str = field(default="no", metadata=hint("no, fp16 or bf16."))
    comm_hook: str = field(
        default="none",
        metadata=hint(
            "What processes send: none (whole gradients), ef21, or topk (it without error feedback)."
        ),
    )
    comm_ratio: float = field(
        default=0.01,
        metadata={**hint("Share of a parameter's gradient that ef21 and topk send."), "aliases": ["--topk"]},
    )
    comm_start_iter: int = field(
        default=2, metadata=hint("Steps with whole gradients before ef21 and topk start.")
    )
    report_to: str = field(default="tensorboard", metadata=hint("A tracker of Accelerate, or none."))
    logging_dir: str = field(default="logs", metadata=hint("Folder of the trackers, inside output_dir."))
    logging_steps: int = field(default=10, metadata=hint("Steps between two entries in the tracker."))
    checkpointing_steps: int = field(default=500, metadata=hint("Steps between two checkpoints; 0: none."))
    checkpoints_total_limit: int | None = field(
        default=None, metadata=hint("Keep only this many checkpoints.")
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata=hint("'latest', or a checkpoint folder; training goes on exactly from there.")
    )
    save_images_epochs: int = field(default=10, metadata=hint("Epochs between two sample grids; 0: none."))
    save_model_epochs: int = field(
        default=10, metadata=hint("Epochs between two saves of the model; 0: at the end.")
    )

    def __post_init__(self) -> None:
        at_least = {
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "logging_steps": 1,
            "comm_start_iter": 1,
        }
        at_least |= dict.fromkeys(
            [
                *(
                    "lr_warmup_steps",
                    "checkpointing_steps",
                    "save_images_epochs",
                    "save_model_epochs",
                    "seed",
                ),
                *("max_grad_norm", "dataloader_num_workers"),
            ],
            0,
        )
        for name, least in at_least.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name} is {value}; it must be at least {least}.")
        if self.max_train_steps is not None and self.max_train_steps < 1:
            raise ValueError(f"--max_train_steps is {self.max_train_steps}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning_rate is {self.learning_rate}; it must be positive.")
        if not 0 < self.comm_ratio <= 1:
            raise ValueError(f"--comm_ratio is {self.comm_ratio}; it must be in (0, 1].")
        for name, known in (
            ("report_to", TRACKERS),
            ("lr_scheduler", SCHEDULES),
            ("optimizer", OPTIMIZERS),
            ("comm_hook", COMM_HOOKS),
        ):
            if (value := getattr(self, name)) not in known:
                raise unknown_name(f"--{name}", value, known)
        if self.mixed_precision is False:  # what YAML makes of a bare `no`
            self.mixed_precision = "no"
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise ValueError(f"--mixed_precision is {self.mixed_precision!r}; known: no, fp16, bf16.")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise ValueError(
                "--checkpoints_total_limit must be at least 1, so that one good checkpoint is kept."
            )


def parse_arguments(*kinds: type, description: str, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parses dataclasses from the command line, with `--config recipe.yaml` giving defaults that flags
    override.

    Raises:
        SystemExit: an unknown flag (as argparse does).
        ValueError: a key in the recipe that no dataclass has, with the nearest known one.
    """
    from transformers import HfArgumentParser

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    parser = HfArgumentParser(kinds, description=description)  # type: ignore[arg-type]
    parser.add_argument("--config", metavar="YAML", help="A recipe; flags on the command line override it.")
    if known.config:
        try:
            recipe = yaml.safe_load(known.config.read_text(encoding="utf-8")) or {}
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise FileFormatError(f"{known.config} is no recipe in YAML: {error}") from error
        if not isinstance(recipe, dict):
            kind = type(recipe).__name__
            raise FileFormatError(f"{known.config} should hold names and values, not a {kind}.")
        names = {f.name for kind in kinds for f in fields(kind)}
        for key in recipe:
            if key not in names:
                raise unknown_name("recipe key", key, names)
        parser.set_defaults(**recipe)
    return parser.parse_args_into_dataclasses(args=rest, look_for_args_file=False)[: len(kinds)]
