"""Exact inversion as a community pipeline: `DiffusionPipeline.from_pretrained(..., custom_pipeline=this
folder)`.

BDIA (Zhang, Lewis, Kleijn, ECCV 2024, arXiv 2307.10829) through Diffusers' own pipelines, which are used
unmodified: `StableDiffusionPipeline` where the model has an autoencoder and a text encoder, `DDPMPipeline`
where it is an unconditional pixel-space UNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from dmkit import hosting
from dmkit.schedulers import BDIALatentPair, edit, encode, invert, reconstruct
from dmkit.schedulers.bdia.images import pixels


@dataclass
class BDIAInversionOutput(BaseOutput):
    """What a call gives.

    Attributes:
        images: PIL images, or [B, C, H, W] in [0, 1] for `output_type="pt"`.
        pair: the noise code; `pair.save_pretrained(folder)` keeps it.
        latents: [B, C, H, W] float64, the regenerated state z_0.
        latent_error: largest absolute error of the latents, the inversion's own. None for an edit.
        pixel_error: largest absolute error of the images in [-1, 1], the autoencoder's included. None for an
            edit.
    """

    images: Any
    pair: BDIALatentPair
    latents: torch.Tensor
    latent_error: float | None
    pixel_error: float | None


class BDIAInversionPipeline(hosting.HostPipeline):
    """Inverts an image exactly and runs it back, as it was or under another prompt.

    The components are those of a Stable Diffusion model, or `unet` and `scheduler` alone.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        target_prompt: str | list[str] | None = None,
        num_inference_steps: int = 50,
        gamma: float = 1.0,
        guidance_scale: float = 1.0,
        target_guidance_scale: float | None = None,
        strength: float = 1.0,
        reversible: str = "algebraic",
        output_type: str = "pil",
    ) -> BDIAInversionOutput:
        """Inverts `image` under `prompt` and regenerates it, under `target_prompt` if there is one.

        Args:
            image: [B, C, H, W] in [-1, 1], or PIL images, of the model's size.
            prompt: what the image shows.
            target_prompt: what it shall show; without it the image is reconstructed.
            num_inference_steps: levels of the grid.
            gamma: 0.92 … 1 for inversion and editing; small values are refused.
            guidance_scale: guidance of the inversion, and of the regeneration unless the next one is given.
            target_guidance_scale: guidance of an edit on the way down.
            strength: the part of the grid to cover; about 0.8 for edits.
            reversible: `"bitwise"` for bit-exact inversion (gamma = 1).
            output_type: `"pil"` or `"pt"`.

        Raises:
            ValueError: as `dmkit.schedulers.invert`.
        """
        pipe = self.inner()
        pair = invert(
            pipe,
            image,
            prompt,
            num_inference_steps=num_inference_steps,
            gamma=gamma,
            guidance_scale=guidance_scale,
            strength=strength,
            reversible=reversible,
        )
        latent_error = pixel_error = None
        if target_prompt is None:
            result = reconstruct(pipe, pair)
            z_0 = encode(pipe, image)
            latent_error = (result.latents - z_0).abs().max().item()
            pixel_error = (result.image - pixels(pipe, image).to(result.image.device)).abs().max().item()
        else:
            result = edit(pipe, pair, target_prompt, guidance_scale=target_guidance_scale)
        images = self.pictures(result.image, output_type)
        return BDIAInversionOutput(images, pair, result.latents, latent_error, pixel_error)
