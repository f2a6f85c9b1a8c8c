"""Checkpoints of a trainer: one folder a step, whole or absent, in Diffusers' layout, without pickle.

    checkpoint-500/
        unet/                     the module, as `save_pretrained` writes it
        unet_ema/                 its averaged weights, the same way
        optimizer-main.safetensors
        rule.safetensors          the gradient rule's state, if it has one
        communication/            each process's memory of gradients, if they are sent compressed
        state.json                step, schedules, optimiser hyper-parameters, EMA counters

Data order and random draws are functions of (seed, step), so a checkpoint carries no generator state.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from .._files import (
    UNFINISHED,
    atomic_folder,
    load_json,
    load_optimizer,
    load_tensors,
    remove_folder,
    save_json,
    save_optimizer,
)
from ..errors import FileFormatError, MissingDataError
from .arguments import TrainingArguments
from .communication.registration import FOLDER as COMMUNICATION

if TYPE_CHECKING:
    from .trainer import Trainer

FORMAT = 1
RULE = "rule.safetensors"
# What must not change between a run and its continuation, or it would silently be another run.
# `max_train_steps` may grow, to train further; a schedule that decays then goes another way from there on.
EXACTNESS = (
    "seed",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "lr_num_cycles",
    "lr_power",
    "optimizer",
    "sgd_momentum",
    "sgd_weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "use_ema",
    "ema_inv_gamma",
    "ema_power",
    "ema_max_decay",
    "mixed_precision",
    "comm_hook",
    "comm_ratio",
    "comm_start_iter",
)


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints in `output`, oldest first."""
    found = [
        (int(m.group(1)), p)
        for p in output.glob("checkpoint-*")
        if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))
    ]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def find_checkpoint(output: Path, wanted: str | None) -> Path | None:
    """Resolves `--resume_from_checkpoint`: nothing, `latest` (nothing yet is fine), or a folder.

    Raises:
        MissingDataError: a folder that does not exist.
    """
    if not wanted:
        return None
    saved = checkpoints(output)
    if wanted == "latest":
        return saved[-1] if saved else None
    path = output / Path(wanted).name if not Path(wanted).is_dir() else Path(wanted)
    if not path.is_dir():
        names = ", ".join(p.name for p in saved) or "none"
        raise MissingDataError(f"No checkpoint {wanted!r} in {output}. There: {names}.")
    return path


def save_checkpoint(trainer: Trainer) -> None:
    """Writes `checkpoint-{step}` atomically and drops the oldest beyond `checkpoints_total_limit`."""
    accelerator, arguments = trainer.accelerator, trainer.arguments
    memories = trainer.communication.write(trainer.output, trainer.step)
    if accelerator.is_main_process:
        modules = trainer.unwrapped()
        with atomic_folder(trainer.output / f"checkpoint-{trainer.step}") as folder:
            optimizers = {
                phase: save_optimizer(optimizer, folder / f"optimizer-{phase}.safetensors")
                for phase, optimizer in trainer.optimizers.items()
            }
            for name, module in modules.items():
                module.save_pretrained(folder / name)
            with trainer.averaged() as averaged:
                for name in trainer.ema:
                    averaged[name].save_pretrained(folder / f"{name}_ema")  # type: ignore[operator]
            if trainer.rule.stateful:
                save_file(trainer.rule.state_dict(), str(folder / RULE))
            if memories is not None:
                os.replace(memories, folder / COMMUNICATION)
            save_json(
                folder / "state.json",
                {
                    "format": FORMAT,
                    "step": trainer.step,
                    "processes": accelerator.num_processes,
                    "arguments": {key: getattr(arguments, key) for key in EXACTNESS},
                    "settings": _settings(trainer),
                    "task": trainer.task.identity(),
                    "communication": trainer.communication.counters(),
                    "optimizers": optimizers,
                    "schedules": {phase: _json_state(s) for phase, s in trainer.schedules.items()},
                    "ema": {name: ema.optimization_step for name, ema in trainer.ema.items()},
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                },
            )
        if arguments.checkpoints_total_limit:
            mine = [path for path in checkpoints(trainer.output) if step_of(path) <= trainer.step]
            for old in mine[: -arguments.checkpoints_total_limit]:
                remove_folder(old)
    accelerator.wait_for_everyone()


def load_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Puts a trainer into the state that `save_checkpoint` wrote.

    Raises:
        FileFormatError: a missing, truncated or foreign part, or a run with other settings than this one.
    """
    state = load_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise FileFormatError(
            f"{folder} has checkpoint format {state.get('format')}; this version reads {FORMAT}."
        )
    try:
        _restore(trainer, folder, state)
    except FileFormatError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{folder} does not fit this run's model or task: {error!r}") from error


def _restore(trainer: Trainer, folder: Path, state: dict[str, Any]) -> None:
    now = {key: getattr(trainer.arguments, key) for key in EXACTNESS}
    # The global batch is what fixes data order and draws: two processes of 32 may go on as one of 64.
    now["train_batch_size"] *= trainer.accelerator.num_processes
    # Older checkpoints are of runs that had the defaults of arguments that came later.
    defaults = {f.name: f.default for f in fields(TrainingArguments)}
    then = {key: defaults[key] for key in EXACTNESS} | state["arguments"]
    then["train_batch_size"] *= state["processes"]
    now |= _settings(trainer)
    then |= state.get("settings", {})  # older checkpoints are of runs that had none
    told = state.get("task", {})  # older checkpoints do not say
    now |= {key: value for key, value in trainer.task.identity().items() if key in told}
    then |= told
    keys = {**then, **now}
    if changed := {k: (then.get(k), now.get(k)) for k in keys if then.get(k) != now.get(k)}:
        what = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in changed.items())
        raise FileFormatError(
            f"{folder} cannot be continued exactly: {what} (batch sizes over all processes)."
        )
    for name, module in trainer.unwrapped().items():
        module.load_state_dict(_load_module(type(module), folder / name).state_dict())
        if name in trainer.ema:
            averaged = _load_module(type(module), folder / f"{name}_ema")
            ema = trainer.ema[name]
            ema.load_state_dict(
                {
                    "shadow_params": [
                        p.detach().to(trainer.accelerator.device) for p in averaged.parameters()
                    ],
                    "optimization_step": state["ema"][name],
                }
            )
    for phase, optimizer in trainer.optimizers.items():
        load_optimizer(optimizer, folder / f"optimizer-{phase}.safetensors", state["optimizers"][phase])
        trainer.schedules[phase].load_state_dict(state["schedules"][phase])
    if trainer.rule.stateful:
        trainer.rule.load_state_dict(load_tensors(folder / RULE))
    trainer.communication.read(folder, state["processes"], state.get("communication", {}))
    if trainer.accelerator.scaler and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.step = state["step"]


def _settings(trainer: Trainer) -> dict[str, Any]:
    return {**trainer.rule.settings(), **trainer.task.settings()}


def _load_module(kind: type[nn.Module], folder: Path) -> nn.Module:
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)  # type: ignore[attr-defined]
    except Exception as error:
        raise FileFormatError(f"{folder} is missing, truncated or not a {kind.__name__}: {error}") from error


def _json_state(schedule: Any) -> dict[str, Any]:
    return {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"} | {"lr_lambdas": [None]}


def save_into(output: Path, write: Callable[[Path], None]) -> None:
    """Fills a temporary folder with `write`, then moves its entries into `output`, folders first.

    `model_index.json`, which makes a folder a pipeline, comes last, so that no half-written pipeline can be
    loaded.
    """
    output.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=output))
    try:
        write(draft)
        # What makes the folder a pipeline goes first and comes back last: nothing half new can be loaded.
        (output / "model_index.json").unlink(missing_ok=True)
        for entry in sorted(
            draft.iterdir(), key=lambda path: (path.name == "model_index.json", path.is_file())
        ):
            target = output / entry.name
            if target.is_dir():
                remove_folder(target)
            os.replace(entry, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
