"""A folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileFormatError, MissingDataError, unknown_name
from .dataset import DecodedPixels, ImageDataset
from .pictures import fit, open_picture, to_tensor

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
METADATA = "metadata.jsonl"
_SPLITS = ("train", "test", "validation", "val", "valid", "dev")


def load(
    folder: Path, split: str, resolution: int | None, channels: int | None, caption_column: str
) -> ImageDataset:
    """A folder of pictures, in the layout that `datasets` calls an image folder.

    `folder/<split>/` where there is such a subfolder; otherwise the folder itself is the split "train". Where
    every picture lies in a subfolder, the first subfolder's name is its label. A `metadata.jsonl` (one JSON
    object a line: `file_name` and a caption) names the pictures and captions them; without one, all pictures
    are taken, by path. Pictures are cropped to the middle square, resized, and put on white where they are
    transparent; they are decoded when they are read, so the folder may be of any size. Licence: whatever the
    pictures have.

    Args:
        folder: the folder.
        split: name of the split.
        resolution: side in pixels; by default the shorter side of the first picture.
        channels: 1 or 3; by default those of the first picture.
        caption_column: key of the caption in `metadata.jsonl`.

    Raises:
        ValueError: no such split.
        MissingDataError: no picture in the folder, or one that `metadata.jsonl` names is missing.
        FileFormatError: a damaged `metadata.jsonl`, or a path in it that leaves the folder; on reading, a
            damaged picture.
    """
    base = _split_folder(folder, split)
    listed = list(_listed(base, caption_column)) if (base / METADATA).exists() else None
    paths = _pictures(base) if listed is None else [path for path, _ in listed]
    if not paths:
        raise MissingDataError(f"{base} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
    parents = [path.relative_to(base).parts[:-1] for path in paths]
    names = sorted({parent[0] for parent in parents}) if all(parents) else []
    captions = [caption for _, caption in listed if caption is not None] if listed else []
    if captions and len(captions) != len(paths):
        raise FileFormatError(
            f"{base / METADATA}: {caption_column!r} is given for {len(captions)} of {len(paths)} pictures."
        )
    first = open_picture(paths[0])
    side = min(first.size) if resolution is None else resolution
    depth = len(first.getbands()) if channels is None else channels
    return ImageDataset(
        DecodedPixels(partial(_read, paths, side, depth), len(paths)),
        name=str(folder),
        split=split,
        channels=depth,
        resolution=side,
        labels=torch.tensor([names.index(parent[0]) for parent in parents]) if names else None,
        label_names=names,
        captions=captions or None,
    )


def _read(paths: Sequence[Path], side: int, depth: int, index: int) -> Tensor:
    return to_tensor(fit(open_picture(paths[index]), side, depth))


def _split_folder(folder: Path, split: str) -> Path:
    present = [name for name in _SPLITS if (folder / name).is_dir()]
    if (folder / split).is_dir():
        return folder / split
    if split == "train" and not present:
        return folder
    raise unknown_name(f"split of {folder}", split, present or ["train"])


def _pictures(base: Path) -> list[Path]:
    """All pictures under a folder, by path; hidden files and folders do not count."""
    found = (path for path in base.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(base).parts))


def _listed(base: Path, caption_column: str) -> Iterator[tuple[Path, str | None]]:
    """Pictures and captions of a `metadata.jsonl`, in its order."""
    table = base / METADATA
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row.get(caption_column)
            path = base / name
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise FileFormatError(f"{where}: expected a JSON object with file_name: {error!r}") from error
        if not path.resolve().is_relative_to(base.resolve()):
            raise FileFormatError(f"{where}: {name!r} leads out of the folder.")
        if caption is not None and not isinstance(caption, str):
            raise FileFormatError(f"{where}: {caption_column!r} is {type(caption).__name__}, not text.")
        if not path.is_file():
            raise MissingDataError(f"{where}: there is no {path}.")
        yield path, caption
