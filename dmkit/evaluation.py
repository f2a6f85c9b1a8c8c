"""How good a sampler's images are: figures of a pipeline with a scheduler against a reference set.

reference = Reference.load("fashion-mnist:test", pipe)
quality(pipe, scheduler, 10, 2000, reference)  # {"frechet_efficientnet_lite0": …}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from . import data
from .errors import MissingDataError
from .metrics import FeatureSet, describe, evaluate_images
from .metrics.features import Extractor, resolve
from .sampling import generate_batches


def image_size(pipe: Any) -> tuple[int, tuple[int, int] | None]:
    """(channels, (height, width)) of a pipeline's images in pixels; None: any size."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    vae = getattr(pipe, "vae", None)
    channels = denoiser.config.in_channels if vae is None else vae.config.in_channels
    size = getattr(denoiser.config, "sample_size", None)
    if size is None:
        return channels, None
    height, width = (size, size) if isinstance(size, int) else size
    scale = 1 if vae is None else pipe.vae_scale_factor
    return channels, (height * scale, width * scale)


def default_cache() -> Path:
    """Where features of reference sets are kept: `dmkit/features` in XDG_CACHE_HOME, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmkit" / "features"


@dataclass(frozen=True)
class Reference:
    """The real images that a model's are measured against.

    Attributes:
        name: what was asked for, with its split (`"fashion-mnist:test"`).
        features: theirs.
        extractor: what made the features; generated images go through the same.
    """

    name: str
    features: FeatureSet
    extractor: Extractor

    @classmethod
    def load(
        cls,
        source: str,
        pipe: Any,
        *,
        extractor: Callable[[Tensor], Tensor] | None = None,
        cache: str | os.PathLike | None = None,
    ) -> Reference:
        """Features of a data set at the size of a pipeline's images, kept on disk for the next time.

        Args:
            source: a data set's name, a folder of pictures, or what else `dmkit.data.load` takes. `:SPLIT`
                may follow; by default "test" for the sets with a name, "train" for the others.
            pipe: the pipeline whose images will be measured; the data is read at their size.
            extractor: as for `dmkit.metrics.describe`.
            cache: folder of kept features; `default_cache()` by default.

        Raises:
            MissingDataError: the data is not on this machine; the message says how to get it.
            ValueError: an unknown data set or split, a data set of other channels, or a model whose images
                are not square.
            Others: as `dmkit.data.load` and `dmkit.metrics.describe`.
        """
        name, _, split = (source, "", "") if Path(source).exists() else source.partition(":")
        split = split or ("test" if name in data.names() else "train")
        channels, size = image_size(pipe)
        if size is not None and size[0] != size[1]:
            raise ValueError(f"Data sets are square; this model's images are {size[0]}x{size[1]}.")
        side = None if size is None else size[0]
        try:
            images = data.load(name, split=split, resolution=side, channels=channels)
        except MissingDataError as error:
            if name not in data.names():
                raise
            raise MissingDataError(
                f"{error} In a checkout of dmkit, `make data` fetches every set."
            ) from error
        chosen = resolve(extractor)
        return cls(f"{name}:{split}", describe(images, chosen, cache=cache or default_cache()), chosen)


def quality(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    num_images: int,
    reference: Reference,
    *,
    metrics: Sequence[str] = ("frechet",),
    seed: int = 0,
    batch_size: int = 64,
    prompt: str | None = None,
    on_image: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Samples and measures; images are not kept, their features are (only moments for "frechet" alone).

    Args:
        pipe: as for `dmkit.sampling.generate`.
        scheduler: the scheduler to sample with.
        num_inference_steps: its steps.
        num_images: images, with the seeds `seed`, `seed + 1`, …
        reference: what to compare with. Fréchet distances compare only at equal `num_images`.
        metrics: of "frechet", "kid", "precision_recall" and "diversity".
        seed: the first seed.
        batch_size: images sampled at once.
        prompt: for text-to-image pipelines, the text that all images share.
        on_image: called once for each image that is done.

    Returns:
        Figures by name, as `dmkit.metrics.evaluate_images` names them.

    Raises:
        ValueError: an unknown metric, or images that are not finite (the message names the scheduler).
        Others: as `dmkit.sampling.generate`.
    """

    def watched() -> Iterator[Tensor]:
        for images in generate_batches(
            pipe, scheduler, num_inference_steps, num_images, seed=seed, batch_size=batch_size, prompt=prompt
        ):
            yield check_finite(images, f"{type(scheduler).__name__} at {num_inference_steps} steps")
            if on_image is not None:
                for _ in images:
                    on_image()

    figures = evaluate_images(watched(), reference.features, reference.extractor, metrics)
    return {name: value for name, value in figures.items() if name != "about"}


def check_finite(images: Tensor, made_by: str) -> Tensor:
    """The images.

    Raises:
        ValueError: they hold NaN or infinite values; the message names what made them.
    """
    if not bool(images.isfinite().all()):
        raise ValueError(f"{made_by} gave images with NaN or infinite values.")
    return images
