"""Between images and the states that a sampler moves: the autoencoder's code, or the pixels themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch

from .calling import denoiser

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def encode(pipe: DiffusionPipeline, image: Any) -> torch.Tensor:
    """The state z_0 of an image: its latents (the mode of the posterior, scaled), or itself in pixel space.

    Args:
        image: [B, C, H, W] in [-1, 1], or one or several PIL images.

    Raises:
        TypeError: neither tensor nor PIL images.
        ValueError: no image, another shape, or out of range.
    """
    vae, image = getattr(pipe, "vae", None), pixels(pipe, image)
    if vae is None:
        return image.to(pipe.device)
    with torch.no_grad():
        code = vae.encode(image.to(vae.device, vae.dtype))
    z = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents
    return (z - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def pixels(pipe: DiffusionPipeline, image: Any) -> torch.Tensor:
    """An image as the model's pixels, [B, C, H, W] in [-1, 1]; arguments and errors as of `encode`."""
    vae = getattr(pipe, "vae", None)
    channels = vae.config.in_channels if vae is not None else denoiser(pipe).config.in_channels
    image = _to_tensor(image, channels)
    if image.ndim != 4 or image.shape[1] != channels or not image.numel():
        raise ValueError(f"image must be [B, {channels}, H, W], got {tuple(image.shape)}.")
    if image.abs().max() > 1 + 1e-3:
        raise ValueError(f"image must lie in [-1, 1], got [{image.min():.3g}, {image.max():.3g}].")
    return image


def decode(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """The image [B, C, H, W] of a state z_0, unclamped; the state itself in pixel space."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return latents
    z = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    with torch.no_grad():
        return vae.decode(z.to(vae.device, vae.dtype)).sample


def _to_tensor(image: Any, channels: int) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image
    images = [image] if isinstance(image, PIL.Image.Image) else list(image)
    if not all(isinstance(one, PIL.Image.Image) for one in images):
        raise TypeError(f"image must be a tensor or PIL images, got {type(image).__name__}.")
    if not images:
        raise ValueError("image is an empty list.")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = np.stack([np.asarray(one.convert(mode), dtype=np.float32) for one in images])
    return torch.from_numpy(pixels.reshape(*pixels.shape[:3], channels)).permute(0, 3, 1, 2) / 127.5 - 1
