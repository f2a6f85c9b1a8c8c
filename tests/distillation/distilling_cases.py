"""What the tests of distillation share: tiny teachers of every layout and prediction type, tasks, batches."""

import copy
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

# Tiny pipelines and the helpers that run scripts live beside the trainer's tests.
sys.path.append(str(Path(__file__).parents[1] / "training"))

import tiny_layouts
from tiny_models import CAPTIONS, step

from dmkit.distillation.prompts import conditions_of, encode_all
from dmkit.distillation.task import Distillation, OneStepTask
from dmkit.distillation.teachers import LoRA
from dmkit.distillation.vsd import Kappa
from dmkit.training.caching import CachedTensors
from dmkit.training.prompting import denoiser_of

TYPES = ("epsilon", "v_prediction", "sample")
SMALL = LoRA(rank=2, alpha=4, learning_rate=1e-2)

_original = cache(tiny_layouts.pipeline_of)


def pipeline_of(layout: str):
    """A copy of the one pipeline of its layout: tokenizers learnt twice may differ."""
    return copy.deepcopy(_original(layout))


def teacher(layout: str = "sd", prediction_type: str = "epsilon"):
    pipe = pipeline_of(layout)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
    return pipe


def task_of(
    layout: str = "sd", prediction_type: str = "epsilon", *, pipe=None, negatives=None, **settings
) -> OneStepTask:
    """A prepared task; `clip`, `student` and `validation_prompts` are the task's, the rest is of
    `Distillation`.
    """
    pipe = pipe or teacher(layout, prediction_type)
    own = {name: settings.pop(name) for name in ("clip", "student", "validation_prompts") if name in settings}
    away = conditions_of(encode_all(pipe, negatives)) if negatives else None
    config = Distillation(**{"kappa": Kappa(0.5, 4.0), "lora": SMALL, **settings})
    torch.manual_seed(0)
    task = OneStepTask(pipe, config, negatives=away, **own)
    task.prepare(torch.device("cpu"))
    return task


def rows_of(task: OneStepTask, prompts=CAPTIONS) -> CachedTensors:
    return CachedTensors(encode_all(task.pipe, prompts))


def batch_of(task: OneStepTask, prompts=CAPTIONS[:3]) -> dict[str, torch.Tensor]:
    rows = rows_of(task, list(prompts))
    return torch.utils.data.default_collate(rows.__getitems__(range(len(rows))))


def both_phases(task: OneStepTask, batch, seed: int = 0) -> tuple[dict, dict]:
    """The losses of one micro-batch."""
    return tuple(task.training_step(batch, replace(step(seed), phase=phase)) for phase in ("student", "fake"))


def perturb(task: OneStepTask, scale: float = 0.05) -> None:
    """Moves student and LoRA, as some steps of training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in (p for ps in task.parameters().values() for p in ps):
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def copies(network) -> dict[str, torch.Tensor]:
    """Copies of a network's weights, the LoRA left out."""
    state = network.state_dict().items()
    return {name.replace(".base_layer", ""): v.clone() for name, v in state if ".lora_" not in name}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], value) for name, value in one.items())


__all__ = ["CAPTIONS", "SMALL", "TYPES", "Kappa", "batch_of", "both_phases", "copies", "denoiser_of"]
__all__ += ["perturb", "pipeline_of", "rows_of", "same", "step", "task_of", "teacher"]
