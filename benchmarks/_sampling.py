"""Sampling quality of a zoo model: what the benchmarks that draw samples share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from dmkit import data, metrics, zoo
from dmkit.sampling import generate_batches
from dmkit.schedulers.registry import build

FEATURES = Path(__file__).parents[1] / "outputs" / "features"


@cache
def model(name: str) -> Any:
    pipe = zoo.load(name)
    pipe.set_progress_bar_config(disable=True)
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
    images = torch.cat(list(generate_batches(pipe, scheduler, steps, count, seed=1_000_000 * seed)))
    figures = metrics.evaluate_images(images, reference(), extractor(), metrics=measures)
    return {key: round(value, 5) for key, value in figures.items() if isinstance(value, float)}
