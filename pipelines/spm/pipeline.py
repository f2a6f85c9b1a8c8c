"""Erased concepts as a community pipeline: `DiffusionPipeline.from_pretrained(..., custom_pipeline=this
folder)`.

SPM with facilitated transport (Lyu et al., CVPR 2024, arXiv 2312.16145), through Diffusers' unmodified
`StableDiffusionPipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dmkit import hosting
from dmkit.adapters import SPM


class SPMPipeline(hosting.HostPipeline):
    """Text to image, with concepts erased by small files that each prompt opens or closes.

    The components are those of a Stable Diffusion model.
    """

    @property
    def spm(self) -> SPM:
        """The adapters: weights, permeabilities, saving, fusing; `spm.pipe` is Diffusers' own pipeline over
        the same components, which loads ordinary LoRAs.
        """
        if "_spm" not in vars(self):
            self._spm = SPM(self.inner())
        # The scheduler may have been replaced since.
        self._spm.pipe.scheduler = self.scheduler
        self._spm.pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return self._spm

    def load_spm_weights(self, source: Any, adapter_name: str, targets: Sequence[str] | None = None) -> None:
        """As `dmkit.adapters.SPM.load_spm_weights`."""
        self.spm.load_spm_weights(source, adapter_name, targets)

    def set_adapters(self, names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """As `dmkit.adapters.SPM.set_adapters`."""
        self.spm.set_adapters(names, adapter_weights)

    def delete_adapters(self, names: str | Sequence[str]) -> None:
        """As `dmkit.adapters.SPM.delete_adapters`."""
        self.spm.delete_adapters(names)

    def unload_spm_weights(self) -> None:
        """As `dmkit.adapters.SPM.unload_spm_weights`."""
        self.spm.unload_spm_weights()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        facilitated_transport: bool = True,
        permeability: str = "linear",
        score: str = "clipcos_tokenuni",
        num_images_per_prompt: int = 1,
        **arguments: Any,
    ) -> Any:
        """As `dmkit.adapters.SPM`'s call.

        Args:
            prompt: one text, or several.
            facilitated_transport: False applies the SPMs to every prompt alike, at their weights.
            permeability: `linear` or `squared`.
            score: `clipcos`, `tokenuni` or `clipcos_tokenuni`.
            num_images_per_prompt: images of each prompt.
            arguments: those of `StableDiffusionPipeline`.

        Returns:
            A `StableDiffusionPipelineOutput`.

        Raises:
            ValueError: an SPM without targets, an unknown score or permeability, fused weights.
        """
        return self.spm(
            prompt,
            facilitated_transport=facilitated_transport,
            permeability=permeability,
            score=score,
            num_images_per_prompt=num_images_per_prompt,
            **arguments,
        )
