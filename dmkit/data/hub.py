"""Data sets of the library `datasets`: saved on this machine, or by hub name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingDataError
from .dataset import DecodedPixels, ImageDataset
from .pictures import fit, to_tensor, upright


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, or holds parquet files, as against pictures."""
    return _is_from_disk(folder) or any(folder.rglob("*.parquet"))


def _is_from_disk(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in ("dataset_dict.json", "dataset_info.json"))


def _open(source: str, split: str) -> Any:
    import datasets

    try:
        if _is_from_disk(Path(source)):
            saved = datasets.load_from_disk(source)
            if not isinstance(saved, datasets.DatasetDict):
                saved = datasets.DatasetDict({"train": saved})
            if split not in saved:
                raise ValueError(f"{source} has no split {split!r}; it has {', '.join(saved)}.")
            return saved[split]
        return datasets.load_dataset(source, split=split)
    except (OSError, ConnectionError) as error:
        raise MissingDataError(
            f"{source} could not be loaded by `datasets`: {error}. Without a network, save a copy elsewhere "
            "with `load_dataset(...).save_to_disk(folder)` and give that folder."
        ) from error


def _read(table: Any, column: str, side: int, depth: int, index: int) -> Tensor:
    return to_tensor(fit(upright(table[index][column]), side, depth))


def load(
    source: str, split: str, resolution: int | None, channels: int | None, caption_column: str
) -> ImageDataset:
    """A data set of the library `datasets`.

    The first image column gives the images, the first class-label column the labels. Pictures are brought to
    size as in an image folder, when they are read. Licence and citation are those that the data set states.

    Args:
        source: hub name (`owner/name`), folder written by `save_to_disk`, or folder of parquet files.
        split: name of the split.
        resolution: side in pixels; by default the shorter side of the first picture.
        channels: 1 or 3; by default those of the first picture.
        caption_column: column of the captions, where there is one of this name.

    Raises:
        ValueError: no such split, or no image column.
        MissingDataError: neither on this machine nor reachable.
    """
    import datasets

    table = _open(source, split)
    images = [key for key, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        raise ValueError(f"{source} has no image column; its columns are {', '.join(table.features)}.")
    if not len(table):
        raise ValueError(f"{source}, split {split!r}, is empty.")
    column = table.select_columns(images[:1])

    first = upright(column[0][images[0]])
    side = min(first.size) if resolution is None else resolution
    depth = len(first.getbands()) if channels is None else channels
    return ImageDataset(
        DecodedPixels(partial(_read, column, images[0], side, depth), len(table)),
        name=source,
        split=split,
        channels=depth,
        resolution=side,
        labels=torch.tensor(table[labels[0]][:]) if labels else None,
        label_names=table.features[labels[0]].names if labels else (),
        captions=list(table[caption_column]) if caption_column in table.features else None,
        license=table.info.license,
        citation=table.info.citation,
    )
