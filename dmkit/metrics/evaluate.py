"""One call from images to figures."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor

from .._files import atomic_file, load_tensors
from ..errors import FileFormatError, unknown_name
from ..images import to_uint8
from .distances import pairwise_diversity, precision_recall
from .features import Extractor, extract, resolve
from .frechet import Moments, frechet_distance, frechet_interval
from .kernel import kid

METRICS = ("frechet", "kid", "precision_recall", "diversity")
_CACHE_FORMAT = 1


@runtime_checkable
class RawImages(Protocol):
    """What a data set has to offer to be measured; `dmkit.data.ImageDataset` does."""

    name: str
    split: str

    def batches_uint8(self, batch_size: int, /) -> Iterator[Tensor]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class FeatureSet:
    """What the metrics need to know of a set of images.

    Attributes:
        extractor: name of the features.
        source: what the images are, in words.
        moments: of the features.
        features: float32 (N, D), or None where only the moments were kept.
    """

    extractor: str
    source: str
    moments: Moments
    features: Tensor | None

    def __len__(self) -> int:
        return self.moments.count


Images: TypeAlias = Tensor | RawImages | Iterable[Any] | FeatureSet


def image_batches(images: Any, batch_size: int) -> Iterator[Tensor]:
    """uint8 batches (B, C, H, W), B <= batch_size, of whatever `describe` takes."""
    if isinstance(images, (str, os.PathLike)):
        raise TypeError(f"Open the folder first: dmkit.data.load({os.fspath(images)!r}).")
    if isinstance(images, RawImages):
        yield from images.batches_uint8(batch_size)
        return
    for batch in [images] if isinstance(images, Tensor) else images:
        if isinstance(batch, Mapping):
            batch = batch["images"]
        if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[1] not in (1, 3):
            what = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"Expected batches of images (N, 1 or 3, H, W), not {what}.")
        for part in batch.split(batch_size):
            yield part if part.dtype == torch.uint8 else _quantised(part)


def _quantised(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise TypeError(f"Images are uint8, or floating point in [-1, 1], not {images.dtype}.")
    if not images.isfinite().all():
        raise ValueError("Images hold values that are not finite.")
    if images.abs().max() > 10:
        raise ValueError(f"Images are expected in [-1, 1]; these reach {images.abs().max():.4g}.")
    return to_uint8(images)


def describe(
    images: Images,
    extractor: Callable[[Tensor], Tensor] | None = None,
    *,
    keep_features: bool = True,
    batch_size: int = 128,
    cache: str | os.PathLike | None = None,
) -> FeatureSet:
    """Reads images once, in batches, and keeps what the metrics need.

    All images pass through 8 bits, so that a tensor and the PNG files made of it give the same figures.

    Args:
        images: a tensor or an iterable of batches (N, C, H, W), uint8 or floating point in [-1, 1] (clipped),
            as tensors or as `{"images": tensor}`; or a data set of `dmkit.data`.
        extractor: a module or function (see `dmkit.metrics.Extractor`); EfficientNet-Lite0 by default.
        keep_features: keep the features (4 bytes x N x D), which all but the plain Fréchet distance need; or
            only their moments (8 bytes x D x D, whatever N).
        batch_size: images at a time.
        cache: a folder that keeps features of data sets (not of tensors), under a name made of the data set,
            what it holds, and the extractor's name.

    Raises:
        ValueError: not images, none at all, or values that are not finite or far out of [-1, 1].
        TypeError: another type of images or extractor.
        MissingExtraError: the extra "metrics" is needed for the default extractor.
        FileFormatError: a damaged file in the cache.
    """
    if isinstance(images, FeatureSet):
        return images
    named = isinstance(images, RawImages)
    source = f"{images.name}, {images.split}" if isinstance(images, RawImages) else "images"
    chosen = resolve(extractor)
    path = _cache_path(Path(cache), images, chosen) if cache and isinstance(images, RawImages) else None
    if path is not None and path.exists():
        found = _read(path, chosen.name, source)
        if found.features is not None or not keep_features:
            return found
    moments, kept = None, []
    for batch in image_batches(images, batch_size):
        features = extract(chosen, batch)
        part = Moments.of(features)
        moments = part if moments is None else moments + part
        if keep_features:
            kept.append(features)
    if moments is None:
        raise ValueError(f"There are no images in {source if named else type(images).__name__}.")
    result = FeatureSet(chosen.name, source, moments, torch.cat(kept) if keep_features else None)
    if path is not None:
        _write(path, result)
    return result


def _cache_path(folder: Path, images: RawImages, extractor: Extractor) -> Path:
    key = [_CACHE_FORMAT, images.name, images.split, images.fingerprint(), extractor.name]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    words = re.sub(r"[^\w.]+", "-", f"{Path(images.name).name} {images.split} {extractor.name}")
    return folder / f"{words}-{digest}.safetensors"


def _write(path: Path, content: FeatureSet) -> None:
    moments = content.moments
    tensors = {"count": torch.tensor(moments.count), "mean": moments.mean, "scatter": moments.scatter}
    if content.features is not None:
        tensors["features"] = content.features
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        save_file(tensors, str(draft), metadata={"extractor": content.extractor, "source": content.source})


def _read(path: Path, extractor: str, source: str) -> FeatureSet:
    tensors = load_tensors(path)
    try:
        moments = Moments(int(tensors["count"]), tensors["mean"], tensors["scatter"])
    except KeyError as error:
        raise FileFormatError(f"{path} holds no {error}; delete it to have it made again.") from error
    return FeatureSet(extractor, source, moments, tensors.get("features"))


def evaluate_images(
    generated: Images,
    reference: Images,
    extractor: Callable[[Tensor], Tensor] | None = None,
    metrics: Sequence[str] = ("frechet", "kid", "precision_recall"),
    *,
    interval: bool = False,
    batch_size: int = 128,
    cache: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Figures of generated against reference images, each under a name that ends in the extractor's.

    Args:
        generated: as for `describe`; or what `describe` returned.
        reference: likewise. To compare several sets with one reference, describe that once.
        extractor: as for `describe`.
        metrics: of "frechet", "kid", "precision_recall" and "diversity".
        interval: add a 95 % interval to the Fréchet distance (see `frechet_interval`).
        batch_size: images at a time.
        cache: a folder that keeps the features of data sets.

    Returns:
        With the default extractor: `frechet_efficientnet_lite0` (and `…_interval`, a pair),
        `kid_efficientnet_lite0` and `…_stderr`, `precision_…`, `recall_…`, `diversity_…` and
        `diversity_…_reference`, as asked for; and `about`, a dict that says what was compared.

    Raises:
        ValueError: an unknown metric (the message names the near one), or features that do not compare.
        Others: as `describe`.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if not metrics:
        raise ValueError(f"Which metrics? Known: {', '.join(METRICS)}.")
    keep = interval or set(metrics) != {"frechet"}
    if not (isinstance(generated, FeatureSet) and isinstance(reference, FeatureSet)):
        extractor = resolve(extractor)
    made, real = (
        describe(images, extractor, keep_features=keep, batch_size=batch_size, cache=cache)
        for images in (generated, reference)
    )
    if made.extractor != real.extractor:
        raise ValueError(f"Features of {made.extractor} and of {real.extractor} do not compare.")
    name, result = made.extractor, dict[str, Any]()
    if "frechet" in metrics:
        result[f"frechet_{name}"] = frechet_distance(made.moments, real.moments)
        if interval:
            result[f"frechet_{name}_interval"] = frechet_interval(_kept(made), real.moments)
    if "kid" in metrics:
        result[f"kid_{name}"], result[f"kid_{name}_stderr"] = kid(_kept(made), _kept(real))
    if "precision_recall" in metrics:
        result[f"precision_{name}"], result[f"recall_{name}"] = precision_recall(_kept(made), _kept(real))
    if "diversity" in metrics:
        result[f"diversity_{name}"] = pairwise_diversity(_kept(made))
        result[f"diversity_{name}_reference"] = pairwise_diversity(_kept(real))
    about = {"extractor": name, "num_generated": len(made), "num_reference": len(real)}
    return {**result, "about": {**about, "reference": real.source}}


def _kept(described: FeatureSet) -> Tensor:
    if described.features is None:
        raise ValueError(
            f"Only the moments of {described.source} were kept; describe it with keep_features=True."
        )
    return described.features
