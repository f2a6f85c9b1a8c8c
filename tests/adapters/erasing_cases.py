"""What the tests of erasing share: tiny pipelines, tasks on them, and a step's random numbers."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

# Tiny pipelines and the helpers that run scripts live beside the trainer's tests.
sys.path.append(str(Path(__file__).parents[1] / "training"))

from tiny_layouts import pipeline_of
from tiny_models import step

from dmkit.adapters.erasing.esd import ESDTask
from dmkit.adapters.erasing.latents import PartialDenoising
from dmkit.adapters.erasing.prompts import ErasePrompt
from dmkit.adapters.erasing.spm import SPMTask
from dmkit.training.prompting import denoiser_of
from dmkit.training.trainer import Step

HEART, CAT = "a red heart", "a cat"


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps its precision in a process-wide state; every test starts without it."""
    AcceleratorState._reset_state(reset_partial_state=True)


def prompt(target: str = HEART, **changes) -> ErasePrompt:
    return ErasePrompt(target, **{"la_strength": 2.0, "sampling_batch_size": 2, **changes})


def spm(layout: str = "sd", prompts=None, steps: int = 4, guidance_scale: float = 3.0, **changes) -> SPMTask:
    pipe = pipeline_of(layout)
    latents = PartialDenoising(pipe.scheduler, steps=steps, guidance_scale=guidance_scale)
    torch.manual_seed(0)
    return prepared(SPMTask(pipe, prompts or [prompt()], latents=latents, **changes))


def esd(part: str, layout: str = "sd", prompts=None, steps: int = 4) -> ESDTask:
    pipe = pipeline_of(layout)
    latents = PartialDenoising(pipe.scheduler, steps=steps)
    return prepared(ESDTask(pipe, prompts or [prompt()], part=part, latents=latents))


def prepared(task):
    task.prepare(torch.device("cpu"))
    return task


def rows(count: int) -> torch.Tensor:
    """A batch: only its length counts."""
    return torch.arange(count)


def weights_of(pipe) -> dict[str, torch.Tensor]:
    """Copies of a pipeline's denoiser's weights, adapters left out."""
    state = denoiser_of(pipe).state_dict().items()
    return {name.replace(".base_layer", ""): value.clone() for name, value in state if ".lora_" not in name}


def perturb(task, scale: float = 0.05) -> None:
    """Moves the trained parameters, as some steps of training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in task.modules["part"].parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


__all__ = ["CAT", "HEART", "Step", "_fresh_accelerate", "esd", "perturb", "pipeline_of", "prepared"]
__all__ += ["prompt", "rows", "spm", "step", "weights_of"]
