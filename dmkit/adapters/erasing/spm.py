"""Training an SPM (Lyu et al.: One-dimensional Adapter to Rule Them All, CVPR 2024): the losses of `task` on
an adapter of `dmkit.adapters.spm.layers`, the base weights untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ...training.prompting import denoiser_of
from ..spm.files import save_spm
from ..spm.layers import adapter_parameters, disabled, inject
from ..spm.weights import SPMMetadata, from_model
from .anchors import Anchors, GaussianAnchors
from .latents import PartialDenoising
from .prompts import ErasePrompt
from .task import ErasingTask, Samples


class SPMTask(ErasingTask):
    """Trains an adapter on a pipeline's denoiser; saves it as `NAME.safetensors`.

    The losses are `erase` and `anchor` (λ included), each a mean.

    Args:
        pipe: a text-to-image pipeline; the adapter is put into its denoiser.
        prompts: what is erased; a random one a step, all by this one adapter.
        name: of the adapter and its file.
        rank: r of the adapter.
        alpha: α of the adapter, whose update is scaled by α / r.
        latents: makes the noisy latents; 30 DDIM steps with guidance 3 if None.
        anchors: draws anchors; `GaussianAnchors` as in the released code if None.
        anchor_unconditional: the unconditional prompt is one more anchor. (The released code has it in place
            of half the anchors, by a slip in the order of its batch.)
        samples: what the tracker's picture shows.
        metadata: what else the file should say of the training (`base_model`, `iterations`, `seed`), and what
            opens it (`targets`) where that is not the prompts' targets.

    Raises:
        ValueError: as `ErasingTask` and `dmkit.adapters.spm.layers.inject`.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[ErasePrompt],
        *,
        name: str = "spm",
        rank: int = 1,
        alpha: float = 1.0,
        latents: PartialDenoising | None = None,
        anchors: Anchors | None = None,
        anchor_unconditional: bool = True,
        samples: Samples | None = None,
        metadata: SPMMetadata | None = None,
    ):
        network = denoiser_of(pipe)
        inject(network, name, rank=rank, alpha=alpha)
        super().__init__(
            pipe,
            adapter_parameters(network, name),
            prompts,
            latents=latents or PartialDenoising(pipe.scheduler),
            anchors=anchors or GaussianAnchors(),
            anchor_unconditional=anchor_unconditional,
            samples=samples,
        )
        self.name, self.rank, self.alpha = name, rank, alpha
        first, given = self.prompts[0], metadata or SPMMetadata()
        self.metadata = replace(
            given,
            targets=given.targets or tuple(dict.fromkeys(prompt.target for prompt in self.prompts)),
            surrogate=given.surrogate or first.neutral or "",
            eta=first.guidance_scale,
            anchoring=first.la_strength if first.anchored else 0.0,
        )

    def unedited(self) -> AbstractContextManager[None]:
        return disabled(self.network)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "adapter": self.name, "rank": self.rank, "alpha": self.alpha}

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        weights = from_model(self.network, self.name, self.metadata)
        save_spm(weights, folder / f"{self.name}.safetensors")
