"""How good a sampler's images are: figures of a pipeline with a scheduler against a reference set and against
prompts.

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

from . import data, zoo
from .errors import FileFormatError, MissingDataError, unknown_name
from .metrics import FeatureSet, PromptEvaluator, describe, evaluate_images, evaluate_prompts
from .metrics.evaluate import METRICS
from .metrics.evaluator import Reading
from .metrics.features import Extractor, resolve
from .metrics.prompts import PROMPT_METRICS
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


def name_and_split(source: str) -> tuple[str, str]:
    """A data set or folder, and what follows its colon: by default "test" for the sets with a name, "train"
    for the others.
    """
    name, _, split = (source, "", "") if Path(source).exists() else source.partition(":")
    return name, split or ("test" if name in data.names() else "train")


def _load_data(name: str, **arguments: Any) -> data.ImageDataset:
    try:
        return data.load(name, **arguments)
    except MissingDataError as error:
        if name not in data.names():
            raise
        raise MissingDataError(f"{error} In a checkout of dmkit, `make data` fetches every set.") from error


def load_prompts(source: str) -> Sequence[str]:
    """Prompts from a text file, one a line (empty lines are skipped), or the captions of a data set.

    Args:
        source: a file; or what `Reference.load` takes, such as `"emoji:test"`.

    Raises:
        ValueError: an unknown data set or split.
        FileFormatError: a file without prompts or in another encoding than UTF-8, or a data set without
            captions.
        Others: as `dmkit.data.load`.
    """
    path = Path(source)
    if not path.is_file():
        name, split = name_and_split(source)
        captions = _load_data(name, split=split).captions
        if captions is None:
            raise FileFormatError(f"{name} has no captions to take as prompts.")
        return captions
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a text file in UTF-8: {error}") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise FileFormatError(f"{path} holds no prompts; it should have one a line.")
    return prompts


def load_evaluator(model: str = "emoji-evaluator") -> PromptEvaluator:
    """An evaluator of prompts that is ready to judge.

    Args:
        model: a folder, or a name of the zoo.

    Raises:
        ValueError: neither; the message names the nearest one of the zoo.
        FileFormatError: a folder that holds no evaluator, or damaged weights.
        MissingExtraError: the extra "metrics" is not installed.
    """
    folder = Path(model) if Path(model).is_dir() else Path(zoo.path(model))
    try:
        evaluator = PromptEvaluator.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise FileFormatError(f"{folder} holds no evaluator that can be loaded: {error}") from error
    evaluator.embed_texts(["a text"])  # a package that is missing is named before an image is sampled
    return evaluator


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
                may follow; see `name_and_split`.
            pipe: the pipeline whose images will be measured; the data is read at their size.
            extractor: as for `dmkit.metrics.describe`.
            cache: folder of kept features; `default_cache()` by default.

        Raises:
            MissingDataError: the data is not on this machine; the message says how to get it.
            ValueError: an unknown data set or split, a data set of other channels, or a model whose images
                are not square.
            Others: as `dmkit.data.load` and `dmkit.metrics.describe`.
        """
        name, split = name_and_split(source)
        channels, size = image_size(pipe)
        if size is not None and size[0] != size[1]:
            raise ValueError(f"Data sets are square; this model's images are {size[0]}x{size[1]}.")
        side = None if size is None else size[0]
        images = _load_data(name, split=split, resolution=side, channels=channels)
        chosen = resolve(extractor)
        return cls(f"{name}:{split}", describe(images, chosen, cache=cache or default_cache()), chosen)


def quality(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    num_images: int,
    reference: Reference | None,
    *,
    metrics: Sequence[str] = ("frechet",),
    seed: int = 0,
    batch_size: int = 64,
    prompt: str | Sequence[str] | None = None,
    evaluator: PromptEvaluator | None = None,
    on_image: Callable[[], object] | None = None,
    **arguments: Any,
) -> dict[str, float]:
    """Samples and measures; images are not kept, their features are (only moments for "frechet" alone).

    Args:
        pipe: as for `dmkit.sampling.generate`.
        scheduler: the scheduler to sample with.
        num_inference_steps: its steps.
        num_images: images, with the seeds `seed`, `seed + 1`, …
        reference: what to compare with; None if all metrics are about prompts. Fréchet distances compare only
            at equal `num_images`.
        metrics: of "frechet", "kid", "precision_recall" and "diversity"; and, where each image has a prompt,
            of "prompt_score", "retrieval" and "concepts".
        seed: the first seed.
        batch_size: images sampled at once.
        prompt: for text-to-image pipelines, the text that all images share, or one for each image.
        evaluator: the judge of the metrics about prompts.
        on_image: called once for each image that is done.
        arguments: as for `dmkit.sampling.generate` (`guidance_scale`, `negative_prompt`).

    Returns:
        Figures by name, as `dmkit.metrics.evaluate_images` and `evaluate_prompts` name them.

    Raises:
        ValueError: an unknown metric, images that are not finite (the message names the scheduler), or no
            reference, evaluator or list of prompts where a metric needs it.
        Others: as `dmkit.sampling.generate`.
    """
    about_images, about_prompts = sorted_metrics(metrics)
    if about_images and reference is None:
        raise ValueError(f"{', '.join(about_images)} need a reference to compare with.")
    if about_prompts and (evaluator is None or prompt is None or isinstance(prompt, str)):
        raise ValueError(f"{', '.join(about_prompts)} need an evaluator and a prompt for each image.")
    readings: list[Reading] = []

    def watched() -> Iterator[Tensor]:
        for images in generate_batches(
            pipe,
            scheduler,
            num_inference_steps,
            num_images,
            seed=seed,
            batch_size=batch_size,
            prompt=prompt,
            **arguments,
        ):
            check_finite(images, f"{type(scheduler).__name__} at {num_inference_steps} steps")
            if about_prompts and evaluator is not None:
                readings.append(evaluator.read(images))
            yield images
            if on_image is not None:
                for _ in images:
                    on_image()

    figures: dict[str, Any] = {}
    if about_images and reference is not None:
        figures = evaluate_images(watched(), reference.features, reference.extractor, about_images)
        del figures["about"]
    else:
        for _ in watched():
            pass
    if about_prompts and evaluator is not None and prompt is not None:
        figures |= evaluate_prompts(evaluator, Reading.joined(readings), prompt, about_prompts)
    return figures


def sorted_metrics(metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics that compare images with images, and those that compare images with prompts.

    Raises:
        ValueError: an unknown metric (the message names the near one), or none at all.
    """
    known = (*METRICS, *PROMPT_METRICS)
    for metric in metrics:
        if metric not in known:
            raise unknown_name("metric", metric, known)
    if not metrics:
        raise ValueError(f"Which metrics? Known: {', '.join(known)}.")
    return [m for m in metrics if m in METRICS], [m for m in metrics if m in PROMPT_METRICS]


def check_finite(images: Tensor, made_by: str) -> Tensor:
    """The images.

    Raises:
        ValueError: they hold NaN or infinite values; the message names what made them.
    """
    if not bool(images.isfinite().all()):
        raise ValueError(f"{made_by} gave images with NaN or infinite values.")
    return images
