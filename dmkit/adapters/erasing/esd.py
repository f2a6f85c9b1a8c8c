"""ESD (Gandikota, Materzynska, Fiotto-Kaufman, Bau: Erasing Concepts from Diffusion Models, ICCV 2023).

The model's own weights are fine-tuned until, under the concept, it predicts what the original, guided away
from the concept, predicts:

    ε_θ(x_t, c, t) ← ε*(x_t, ∅, t) - η [ε*(x_t, c, t) - ε*(x_t, ∅, t)]

ESD-x trains the cross-attentions (for what a prompt names, such as a style), ESD-u everything else (for what
shows without being named). The loss is the squared difference of the two sides, the right one without
gradient: `task`'s equation (4) with ∅ for the surrogate, or with another surrogate where one is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...errors import unknown_name
from ...training.prompting import denoiser_of
from .latents import PartialDenoising
from .prompts import ErasePrompt
from .task import ErasingTask, Samples

PARTS = ("esd-x", "esd-u")


def cross_attentions(network: nn.Module) -> dict[str, Attention]:
    """The attentions to the text, by module name.

    Raises:
        ValueError: there is none.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }
    if not found:
        raise ValueError(f"{type(network).__name__} has no cross-attention.")
    return found


def trained_parameters(network: nn.Module, part: str) -> dict[str, nn.Parameter]:
    """The cross-attentions' parameters (`esd-x`), or all others (`esd-u`).

    Raises:
        ValueError: an unknown part, or a network without cross-attention.
    """
    if part not in PARTS:
        raise unknown_name("part of ESD", part, PARTS)
    inside = tuple(f"{name}." for name in cross_attentions(network))
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if name.startswith(inside) == (part == "esd-x")
    }


class ESDTask(ErasingTask):
    """Fine-tunes a part of a pipeline's denoiser, in place; saves the whole pipeline.

    Args:
        pipe: a text-to-image pipeline.
        prompts: what is erased; a random one a step. λ and anchors have no part in ESD.
        part: `esd-x` or `esd-u`.
        latents: makes the noisy latents; 50 DDIM steps with guidance 3 as in the released code, if None.
        samples: what the tracker's picture shows.

    Raises:
        ValueError: as `ErasingTask` and `trained_parameters`.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[ErasePrompt],
        *,
        part: str = "esd-x",
        latents: PartialDenoising | None = None,
        samples: Samples | None = None,
    ):
        network = denoiser_of(pipe)
        trained = trained_parameters(network, part)
        network.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        latents = latents or PartialDenoising(pipe.scheduler, steps=50)
        super().__init__(pipe, trained, prompts, latents=latents, samples=samples)
        self.part, self.trained = part, trained
        self.originals: dict[str, Tensor] = {}

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self.originals = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The original weights in place of the trained ones; only pointers move."""
        edited = {name: parameter.data for name, parameter in self.trained.items()}
        try:
            for name, parameter in self.trained.items():
                parameter.data = self.originals[name]
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = edited[name]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "part": self.part}

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        self.pipe.save_pretrained(folder)
