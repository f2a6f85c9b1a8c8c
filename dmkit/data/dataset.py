"""The one data set class: uint8 pictures in memory, or decoded when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Pixels(Protocol):
    """Where an `ImageDataset` keeps its images; a uint8 tensor (N, C, H, W) is one such place."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> Tensor:
        """uint8 images (B, C, H, W) for a list of indices."""


class DecodedPixels:
    """Images that are read from their files each time, so that a folder of any size can be used.

    Args:
        decode: index -> uint8 image (C, H, W), of the same shape for every index.
        length: number of images.
    """

    def __init__(self, decode: Callable[[int], Tensor], length: int):
        self._decode, self._length = decode, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: Sequence[int], /) -> Tensor:
        return torch.stack([self._decode(int(index)) for index in indices])


def _nth(pixels: Pixels, indices: Sequence[int], k: int) -> Tensor:
    return pixels[[indices[k]]][0]


class ImageDataset(Dataset):
    """Square images with their labels and captions where these are known.

    An item is a dict: `images`, a float32 tensor (C, H, W) in [-1, 1]; `labels`, an int; `captions`, a str.
    Items are deterministic. The default collation of PyTorch makes batches of them.

    Args:
        pixels: uint8 images, (N, C, resolution, resolution) with 1 or 3 channels.
        name: how `dmkit.data.load` finds the set (or a folder's path).
        split: the split that this is.
        channels: 1 (grey) or 3 (RGB).
        resolution: side in pixels.
        labels: int64 (N,), indices into `label_names`.
        label_names: names of the classes.
        captions: one for each image.
        license: the data's licence; "" if not known.
        citation: whom to credit; "" if not known.

    Raises:
        ValueError: labels or captions that are not one for each image, or a tensor of another shape or type.
    """

    def __init__(
        self,
        pixels: Pixels,
        *,
        name: str,
        split: str,
        channels: int,
        resolution: int,
        labels: Tensor | None = None,
        label_names: Sequence[str] = (),
        captions: Sequence[str] | None = None,
        license: str = "",
        citation: str = "",
    ):
        if isinstance(pixels, Tensor):
            expected = (len(pixels), channels, resolution, resolution)
            if pixels.dtype != torch.uint8 or tuple(pixels.shape) != expected:
                raise ValueError(
                    f"pixels: expected uint8 {expected}, not {pixels.dtype} {tuple(pixels.shape)}."
                )
        for what, values in (("labels", labels), ("captions", captions)):
            if values is not None and len(values) != len(pixels):
                raise ValueError(f"{len(values)} {what} for {len(pixels)} images.")
        self._pixels, self._labels, self._captions = pixels, labels, captions
        self.name, self.split, self.channels, self.resolution = name, split, channels, resolution
        self.label_names, self.license, self.citation = tuple(label_names), license, citation

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items for many indices at once, which is what PyTorch's loader asks for: one conversion a batch."""
        indices = list(indices)
        columns: dict[str, Sequence[Any]] = {
            "images": self._pixels[indices].float().div_(127.5).sub_(1).unbind()
        }
        if self._labels is not None:
            columns["labels"] = self._labels[indices].tolist()
        if self._captions is not None:
            columns["captions"] = [self._captions[index] for index in indices]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def images_uint8(self, indices: Sequence[int] | None = None) -> Tensor:
        """Raw images (N, C, H, W), uint8, of all or of the given indices.

        For a set that is held in memory "all" is a view and costs nothing; do not write to it.
        """
        if indices is None and isinstance(self._pixels, Tensor):
            return self._pixels
        return self._pixels[list(range(len(self)) if indices is None else indices)]

    def batches_uint8(self, batch_size: int = 256) -> Iterator[Tensor]:
        """Raw images in order, `batch_size` at a time."""
        for start in range(0, len(self), batch_size):
            yield self.images_uint8(range(start, min(start + batch_size, len(self))))

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), or None where they are not known."""
        return self._labels

    @property
    def captions(self) -> Sequence[str] | None:
        """One text for each image, or None where they are not known."""
        return self._captions

    def select(self, indices: Sequence[int]) -> ImageDataset:
        """The images of these indices, in this order, as a data set of its own."""
        indices = [range(len(self))[index] for index in indices]
        pixels: Pixels
        if isinstance(self._pixels, Tensor):
            pixels = cast(Pixels, self._pixels[indices])
        else:
            pixels = DecodedPixels(partial(_nth, self._pixels, indices), len(indices))
        return ImageDataset(
            pixels,
            name=self.name,
            split=self.split,
            channels=self.channels,
            resolution=self.resolution,
            labels=None if self._labels is None else self._labels[indices],
            label_names=self.label_names,
            captions=None if self._captions is None else [self._captions[k] for k in indices],
            license=self.license,
            citation=self.citation,
        )

    def fingerprint(self) -> str:
        """16 hex digits of what the set holds: its size and the pixels of up to 64 images, ends included.

        Two sets of equal fingerprint may still differ in an image that was not looked at; it is meant for
        noticing that a folder has changed since features of it were stored, not for security.
        """
        spread = torch.linspace(0, len(self) - 1, min(64, len(self))).round().int().tolist()
        digest = hashlib.sha256(json.dumps([len(self), self.channels, self.resolution]).encode())
        digest.update(self.images_uint8(spread).numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        shape = f"{self.channels}x{self.resolution}x{self.resolution}"
        return f"ImageDataset({self.name!r}, split={self.split!r}, {len(self)} images of {shape})"


class Rows(Dataset):
    """Columns of equal length as a data set: item k is a dict of the k-th row of each.

    Args:
        columns: tensors (N, ...) by name.

    Raises:
        ValueError: no column, or columns of different length.
    """

    def __init__(self, **columns: Tensor):
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"Columns of one length are needed, not {lengths}.")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.columns.items()}
