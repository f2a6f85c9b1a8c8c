"""The shipped `fashion` model fine-tuned and measured: what the benchmarks that change its weights share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from dmkit import data, metrics, zoo
from dmkit.sampling import sample_batch
from dmkit.training.arguments import TrainingArguments
from dmkit.training.denoising import DenoisingTask
from dmkit.training.trainer import Trainer

BATCH, TESTED, SAMPLED, SAMPLE_STEPS, REFERENCE = 32, 1000, 500, 10, 2000
Change = Callable[[Tensor], Tensor]


@cache
def shipped() -> Any:
    return zoo.load("fashion")


@cache
def extractor() -> Any:
    return metrics.EfficientNetLite0()


def test_images(count: int) -> Tensor:
    """(count, 1, 32, 32), uint8."""
    return data.load("fashion-mnist", split="test", resolution=32).images_uint8(range(count))


def as_they_are(images: Tensor) -> Tensor:
    return images


@cache
def reference(change: Change = as_they_are) -> metrics.FeatureSet:
    """Features of 2,000 test images, changed or not."""
    return metrics.describe(change(test_images(REFERENCE)), extractor())


def fresh() -> UNet2DModel:
    """The shipped denoiser."""
    unet = UNet2DModel.from_config(shipped().unet.config)
    unet.load_state_dict(shipped().unet.state_dict())
    return unet.eval()


def tune(
    unet: UNet2DModel, steps: int, seed: int, rate: float, images: Any = None, *, warmup: int = 20
) -> None:
    """Trains in place, AdamW and cosine, on the training images or others."""
    if images is None:
        images = data.load("fashion-mnist", split="train", resolution=32)
    task = DenoisingTask(unet, shipped().scheduler)
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            seed=seed,
            train_batch_size=BATCH,
            max_train_steps=steps,
            learning_rate=rate,
            lr_warmup_steps=warmup,
            checkpointing_steps=0,
            save_images_epochs=0,
            save_model_epochs=0,
            report_to="none",
        )
        Trainer(task, images, training).train()
    unet.eval()


@torch.no_grad()
def loss(unet: nn.Module, change: Change = as_they_are, count: int = TESTED) -> float:
    """Of ε on test images, each with one fixed noise and time."""
    images = change(test_images(count))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 32, 32, generator=generator)
    times = torch.randperm(count, generator=generator) * 1000 // count
    total = 0.0
    for part in torch.arange(count).split(100):
        noisy = shipped().scheduler.add_noise(images[part].float() / 127.5 - 1, noise[part], times[part])
        total += float((unet(noisy, times[part]).sample - noise[part]).square().mean()) * len(part)
    return total / count


def frechet(unet: nn.Module, change: Change = as_they_are, count: int = SAMPLED) -> float:
    """EfficientNet-Lite0 features of samples, DDIM, 10 steps, the same seeds everywhere, to the reference."""
    scheduler = DDIMScheduler.from_config(shipped().scheduler.config)
    seeds = torch.arange(count).split(50)
    samples = torch.cat([sample_batch(unet, scheduler, SAMPLE_STEPS, part.tolist()) for part in seeds])
    found = metrics.evaluate_images(
        samples.clamp(-1, 1), reference(change), extractor(), metrics=("frechet",)
    )
    return found["frechet_efficientnet_lite0"]
