"""The variational autoencoder of latent diffusion (Rombach et al. 2022) as a task.

    z = μ(x) + σ(x) ε,   loss = ‖D(z) - x‖² + w KL(N(μ, σ²) ‖ N(0, 1))

both terms as means: over pixels, and over latent numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from ..images import grid
from .trainer import Step, Task


class TrainableAutoencoder(AutoencoderKL):
    """`AutoencoderKL` with a forward pass that takes its noise and returns what the loss needs."""

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, C, H, W) and noise of the latents' shape -> the reconstruction, and the KL divergence (B,) as a
        mean over latent numbers.
        """
        posterior = self.encode(images).latent_dist
        decoded = self.decode(posterior.mean + posterior.std * noise).sample
        return decoded, posterior.kl() / noise[0].numel()

    @property
    def latent_side(self) -> int:
        return self.config.sample_size // 2 ** (len(self.config.block_out_channels) - 1)

    def plain(self) -> AutoencoderKL:
        """The same weights as the class that pipelines know."""
        vae = AutoencoderKL.from_config(self.config)
        vae.load_state_dict(self.state_dict())
        return vae


class AutoencodingTask(Task):
    """Trains an autoencoder to latents.

    Args:
        vae: the network.
        kl_weight: w.
        examples: images (N, C, H, W) in [-1, 1] for the sample grid: each beside its reconstruction.
        scaling_images: images whose latents' standard deviation sets the saved scaling factor.
    """

    def __init__(
        self, vae: TrainableAutoencoder, *, kl_weight: float, examples: Tensor, scaling_images: Tensor
    ):
        self.modules = {"vae": vae}
        self.kl_weight, self.examples, self.scaling_images = kl_weight, examples, scaling_images
        self.latent_shape = (vae.config.latent_channels, vae.latent_side, vae.latent_side)

    def prepare(self, device: torch.device) -> None:
        self.examples = self.examples.to(device)

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        images = batch["images"]
        noise = step.draws.normal((len(images), *self.latent_shape))
        decoded, divergence = self.modules["vae"](images, noise)
        return {
            "reconstruction": (decoded.float() - images).pow(2).mean(),
            "kl": self.kl_weight * divergence.mean(),
        }

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        vae: Any = modules["vae"]
        decoded = vae.decode(vae.encode(self.examples).latent_dist.mode()).sample.clamp(-1, 1)
        return grid(torch.stack([self.examples, decoded], dim=1).flatten(0, 1))

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        vae = modules["vae"].plain()  # type: ignore[operator]
        vae.register_to_config(scaling_factor=scaling_factor(vae, self.scaling_images))
        vae.save_pretrained(folder)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, images: Tensor, batch_size: int = 256) -> float:
    """One over the standard deviation of all numbers in the images' latents (Rombach et al. 2022, G)."""
    means = [vae.encode(part.to(vae.device)).latent_dist.mean for part in images.split(batch_size)]
    return float(1 / torch.cat(means).std())
