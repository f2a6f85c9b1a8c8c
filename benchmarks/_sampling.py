"""Sampling quality of a zoo model: what the benchmarks that draw samples share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor
import yaml

from dmkit import data, metrics, zoo
from dmkit.sampling import generate_batches
from dmkit.schedulers.registry import build

FEATURES = Path(__file__).parents[1] / "outputs" / "features"


BATCH = 64


@cache
def model(name: str) -> Any:
    """A zoo model whose denoiser is compiled for whole batches: a quarter less time, equal within 3e-6."""
    pipe = zoo.load(name)
    pipe.set_progress_bar_config(disable=True)
    inductor.freezing = True
    plain = pipe.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last).forward
    compiled = torch.compile(plain)
    # Another size, the last batch's, is not worth a compilation.
    pipe.unet.forward = lambda x, *more, **options: (compiled if len(x) == BATCH else plain)(
        x.to(memory_format=torch.channels_last), *more, **options
    )
    return pipe


@cache
def extractor() -> Any:
    return metrics.EfficientNetLite0()


@cache
def reference() -> metrics.FeatureSet:
    """Features of Fashion-MNIST's 10,000 test images."""
    images = data.load("fashion-mnist", split="test", resolution=32)
    return metrics.describe(images, extractor(), cache=FEATURES)


def quality(
    name: str,
    sampler: str,
    steps: int,
    *,
    seed: int,
    count: int = 2000,
    measures: tuple[str, ...] = ("frechet", "kid", "precision_recall"),
    **settings: Any,
) -> dict[str, float]:
    """Metrics of `count` samples; image k of run `seed` has seed 1,000,000 seed + k.

    `sampler` is a name of the registry, with settings after an @: `bdia@gamma=0.5`.
    """
    sampler, _, inline = sampler.partition("@")
    settings |= {
        key: yaml.safe_load(value) for key, value in (part.split("=") for part in inline.split(",") if part)
    }
    pipe = model(name)
    scheduler = build(sampler, pipe.scheduler.config, **settings)
    batches = generate_batches(pipe, scheduler, steps, count, seed=1_000_000 * seed, batch_size=BATCH)
    images = torch.cat(list(batches))
    figures = metrics.evaluate_images(images, reference(), extractor(), metrics=measures)
    return {key: round(value, 5) for key, value in figures.items() if isinstance(value, float)}
