"""Editing by exact inversion as a community pipeline: `DiffusionPipeline.from_pretrained(...,
custom_pipeline=this folder)`.

BDIA (Zhang, Lewis, Kleijn, ECCV 2024, arXiv 2307.10829) up under a source prompt and down under a target
prompt, through Diffusers' unmodified `StableDiffusionPipeline`; with local blending after DiffEdit (Couairon
et al., ICLR 2023, arXiv 2210.11427).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from dmkit import hosting
from dmkit.schedulers import BDIALatentPair, edit_image


@dataclass
class BDIAEditingOutput(BaseOutput):
    """What a call gives.

    Attributes:
        images: the edited images: PIL images, or [B, C, H, W] in [0, 1] for `output_type="pt"`.
        reconstructions: the images as they come back under the source prompt, in the same form.
        mask: [B or 1, 1, h, w] at the size of the latents, 1 where the image was allowed to change; None for
            the whole image.
        latents: [B, C, h, w] float64, the state z_0 of the edit.
        source_latents: [B, C, h, w] float64, the state z_0 of the reconstruction.
        pair: the noise code of the source; `pair.save_pretrained(folder)` keeps it.
    """

    images: Any
    reconstructions: Any
    mask: torch.Tensor | None
    latents: torch.Tensor
    source_latents: torch.Tensor
    pair: BDIALatentPair


class BDIAEditingPipeline(hosting.HostPipeline):
    """Changes what a prompt says of an image and keeps the rest.

    The components are those of a Stable Diffusion model.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        source_prompt: str | list[str],
        target_prompt: str | list[str],
        num_inference_steps: int = 50,
        gamma: float = 0.94,
        guidance_scale: float = 3.0,
        source_guidance_scale: float | None = None,
        strength: float = 0.8,
        mask: Any = None,
        method: str = "bdia",
        negative_prompt: str | list[str] | None = None,
        output_type: str = "pil",
    ) -> BDIAEditingOutput:
        """Inverts `image` under `source_prompt` and regenerates it under `target_prompt`.

        Args:
            image: [B, C, H, W] in [-1, 1], or PIL images, of the model's size.
            source_prompt: what the image shows.
            target_prompt: what it shall show; equal prompts (and guidance) give the image back.
            num_inference_steps: levels of the grid.
            gamma: in (0, 1], 0.92 … 1 in the paper; what would explode is refused.
            guidance_scale: guidance of the edit.
            source_guidance_scale: guidance of the inversion; by default the same.
            strength: the part of the grid to climb; less keeps more of the image.
            mask: where the image may change: a mask in [0, 1] or PIL (white may change), `"auto"` for one
                from the two prompts, None for everywhere. Elsewhere the image comes back up to the
                autoencoder.
            method: `"bdia"`, or a baseline: `"edict"` or `"ddim"`.
            negative_prompt: for guidance, in both directions.
            output_type: `"pil"` or `"pt"`.

        Raises:
            ValueError: as `dmkit.schedulers.edit_image`.
        """
        negative = {} if negative_prompt is None else {"negative_prompt": negative_prompt}
        done = edit_image(
            self.inner(),
            image,
            source_prompt,
            target_prompt,
            num_inference_steps=num_inference_steps,
            gamma=gamma,
            guidance_scale=guidance_scale,
            source_guidance_scale=source_guidance_scale,
            strength=strength,
            mask=mask,
            method=method,
            **negative,
        )
        return BDIAEditingOutput(
            images=self.pictures(done.edit.image, output_type),
            reconstructions=self.pictures(done.reconstruction.image, output_type),
            mask=done.mask,
            latents=done.edit.latents,
            source_latents=done.reconstruction.latents,
            pair=done.pair,
        )
