"""The denoising objective of diffusion models (Ho et al. 2020) as a task, for pixels and for latents under
a text.

    x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε                                             (DDPM, eq. 4)
    loss = w(t) ‖f(x_t, t) - target‖²,   target = ε  |  v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) x_0  |  x_0

Min-SNR (Hang et al. 2023): with SNR = ᾱ_t / (1 - ᾱ_t), w = min(SNR, γ) for x_0, divided by SNR for ε and by
SNR + 1 for v, so that the three weigh the same x_0 error alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from ..errors import unknown_name
from ..images import grid
from ..sampling import sample_batch
from .ant.sampling import ClusteredTimesteps, ClusterTimestepSampler
from .caching import encode_prompts
from .trainer import Step, Task

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def prediction_target(scheduler: DDPMScheduler, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict, by the scheduler's `prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(x0, noise, timesteps)
    return x0


def loss_weights(alphas_cumprod: Tensor, prediction_type: str, snr_gamma: float | None) -> Tensor:
    """w(t) for every t of the schedule, float32 of shape (T,).

    Without `snr_gamma` the weight is 1 for ε and v, and the SNR for x_0 (Salimans & Ho 2022: the same as 1
    for ε).
    """
    if snr_gamma is None and prediction_type != "sample":
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod.double() / (1 - alphas_cumprod.double())
    in_x0 = snr if snr_gamma is None else snr.clamp(max=snr_gamma)
    per_type = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}
    return (in_x0 / per_type[prediction_type]).float()


@dataclass(frozen=True)
class Examples:
    """What a denoiser is shown, (B, …) each, and what it should say to it.

    Attributes:
        noisy: x_t.
        timesteps: t, int64 (B,).
        target: ε, v or x_0.
        conditions: what else the denoiser is given, by argument name.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    conditions: dict[str, Tensor]

    def rows(self, index: Tensor) -> Examples:
        """Some of the items."""
        conditions = {name: value[index] for name, value in self.conditions.items()}
        return Examples(self.noisy[index], self.timesteps[index], self.target[index], conditions)


class DenoisingTask(Task):
    """Trains an unconditional `UNet2DModel`.

    Args:
        unet: the denoiser.
        scheduler: the noise schedule; its `prediction_type` chooses the target.
        snr_gamma: γ of the Min-SNR weighting (5 in its paper); None for no weighting.
        random_flip: mirror images left-right with probability 1/2.
        sampler: draws timesteps by cluster and makes one loss of each (ANT); None for uniform timesteps and
            one loss.
        sample_steps: DDIM steps of the sample grid.
        num_samples: images in the sample grid.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: DDPMScheduler,
        *,
        snr_gamma: float | None = None,
        random_flip: bool = False,
        sampler: ClusterTimestepSampler | None = None,
        sample_steps: int = 50,
        num_samples: int = 64,
    ):
        kind = scheduler.config.prediction_type
        if kind not in PREDICTION_TYPES:
            raise unknown_name("prediction type", kind, PREDICTION_TYPES)
        self.modules = {"unet": unet}
        self.scheduler = scheduler
        self.snr_gamma, self.random_flip, self.sampler = snr_gamma, random_flip, sampler
        self.sample_steps, self.num_samples = sample_steps, num_samples
        self.weights = loss_weights(scheduler.alphas_cumprod, kind, snr_gamma)

    def prepare(self, device: torch.device) -> None:
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(device)
        self.weights = self.weights.to(device)

    def clean(self, batch: Mapping[str, Any], step: Step) -> Tensor:
        """x_0 of a batch."""
        x0: Tensor = batch["images"]
        if self.random_flip:
            mirrored = step.draws.uniform((len(x0), 1, 1, 1)) < 0.5
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        return x0

    def conditions(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        """What else the denoiser is given, by argument name."""
        return {}

    def settings(self) -> dict[str, Any]:
        return {} if self.sampler is None else self.sampler.settings()

    def identity(self) -> dict[str, Any]:
        schedule = ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
        return {
            **{key: self.scheduler.config[key] for key in schedule},
            "snr_gamma": self.snr_gamma,
            "random_flip": self.random_flip,
        }

    def examples(self, batch: Mapping[str, Any], step: Step, timesteps: Tensor | None = None) -> Examples:
        """A batch made noisy, at uniform timesteps if none are given."""
        x0 = self.clean(batch, step)
        noise = step.draws.normal(tuple(x0.shape))
        if timesteps is None:
            timesteps = step.draws.integers(self.scheduler.config.num_train_timesteps, (len(x0),))
        return Examples(
            noisy=self.scheduler.add_noise(x0, noise, timesteps),
            timesteps=timesteps,
            target=prediction_target(self.scheduler, x0, noise, timesteps),
            conditions=self.conditions(batch, step),
        )

    def errors(self, examples: Examples) -> Tensor:
        """The weighted loss of each item (B,)."""
        prediction = self.modules["unet"](examples.noisy, examples.timesteps, **examples.conditions).sample
        errors = (prediction.float() - examples.target.float()).pow(2).mean(dim=(1, 2, 3))
        return self.weights[examples.timesteps] * errors

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        if self.sampler is None:
            return {"loss": self.errors(self.examples(batch, step)).mean()}
        drawn, examples = self._clustered(self.sampler, batch, step)
        losses = drawn.losses(self.errors(examples))
        return dict(zip(self.sampler.names, losses.unbind(), strict=True))

    def each_loss(self, batch: Mapping[str, Any], step: Step) -> Iterator[tuple[str, Tensor]]:
        """One loss for each cluster, from a forward pass of its items alone."""
        if self.sampler is None:
            yield from super().each_loss(batch, step)
            return
        drawn, examples = self._clustered(self.sampler, batch, step)
        for slot, name in enumerate(self.sampler.names):
            rows = drawn.rows(slot)
            # A process may have no item of a cluster, if its batch is smaller than their number.
            total = self.errors(examples.rows(rows)).sum() if len(rows) else drawn.divisors.new_zeros(())
            yield name, total / drawn.divisors[slot]
            del total

    def _clustered(
        self, sampler: ClusterTimestepSampler, batch: Mapping[str, Any], step: Step
    ) -> tuple[ClusteredTimesteps, Examples]:
        drawn = sampler(len(next(iter(batch.values()))), step)
        return drawn, self.examples(batch, step, drawn.timesteps)

    def save_clusters(self, folder: Path) -> None:
        """Writes `clusters.json` beside the model, if there are clusters."""
        if self.sampler is not None:
            self.sampler.clusters.save(folder / "clusters.json")

    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        return grid(sample_batch(modules["unet"], scheduler, self.sample_steps, range(self.num_samples)))

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        DDPMPipeline(unet=modules["unet"], scheduler=self.scheduler).save_pretrained(folder)
        self.save_clusters(folder)


class TextToImageTask(DenoisingTask):
    """Trains the `UNet2DConditionModel` of a latent diffusion pipeline on the rows of
    `dmkit.training.caching.encode_dataset`.

    Args:
        pipe: the pipeline; its unet is trained, its autoencoder and text encoder are only used for samples.
        scheduler: the noise schedule; its `prediction_type` chooses the target.
        snr_gamma: γ of the Min-SNR weighting; None for no weighting.
        sampler: as for `DenoisingTask`.
        caption_dropout: how often a caption is replaced by the empty one, for classifier-free guidance.
        prompts: prompts of the sample grid.
        guidance_scale: guidance of the sample grid.
        sample_steps: DDIM steps of the sample grid.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        scheduler: DDPMScheduler,
        *,
        snr_gamma: float | None = None,
        sampler: ClusterTimestepSampler | None = None,
        caption_dropout: float = 0.1,
        prompts: Sequence[str] = (),
        guidance_scale: float = 5.0,
        sample_steps: int = 25,
    ):
        super().__init__(
            pipe.unet, scheduler, snr_gamma=snr_gamma, sampler=sampler, sample_steps=sample_steps
        )
        self.pipe, self.caption_dropout = pipe, caption_dropout
        self.prompts, self.guidance_scale = list(prompts), guidance_scale
        self.empty = encode_prompts([""], pipe.text_encoder, pipe.tokenizer).float()

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self.empty = self.empty.to(device)
        self.pipe.vae.to(device)
        self.pipe.text_encoder.to(device)

    def clean(self, batch: Mapping[str, Any], step: Step) -> Tensor:
        mean, std = batch["latent_mean"], batch["latent_std"]
        return (mean + std * step.draws.normal(tuple(mean.shape))) * self.pipe.vae.config.scaling_factor

    def conditions(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        embeddings = batch["embeddings"]
        dropped = step.draws.uniform((len(embeddings), 1, 1)) < self.caption_dropout
        return {"encoder_hidden_states": torch.where(dropped, self.empty, embeddings)}

    def pipeline(self, unet: nn.Module) -> StableDiffusionPipeline:
        """The whole pipeline with this denoiser and a DDIM sampler."""
        scheduler = DDIMScheduler.from_config(
            self.scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        return StableDiffusionPipeline(
            **{**self.pipe.components, "unet": unet, "scheduler": scheduler}, requires_safety_checker=False
        )

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image | None:
        if not self.prompts:
            return None
        pipe = self.pipeline(modules["unet"])
        pipe.set_progress_bar_config(disable=True)
        images = pipe(
            self.prompts,
            num_inference_steps=self.sample_steps,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(k) for k in range(len(self.prompts))],
            output_type="pt",
        ).images
        return grid(images.cpu() * 2 - 1)

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        self.pipeline(modules["unet"]).save_pretrained(folder)
        self.save_clusters(folder)
