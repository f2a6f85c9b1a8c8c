"""Recorded series that the package `aeon` carries, read without importing it: it is used for its files only,
so that `pip install --no-deps aeon` is enough.

The sets are of the UCR and UEA archives (Dau et al. 2019, arXiv:1810.07758; Bagnall et al. 2018,
arXiv:1811.00075).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileFormatError, MissingExtraError, unknown_name

NAMES = ("ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "OSULeaf")


def load_series(name: str, split: str = "train") -> tuple[Tensor, Tensor]:
    """A set of series of equal length.

    Args:
        name: one of `NAMES`.
        split: "train" or "test".

    Returns:
        (N, C, T) float32, as recorded, and the classes (N,) from 0, in the order of their names.

    Raises:
        ValueError: an unknown name or split.
        MissingExtraError: `aeon` is not installed.
        FileFormatError: a damaged file.
    """
    if name not in NAMES:
        raise unknown_name("set of series", name, NAMES)
    if split not in ("train", "test"):
        raise unknown_name("split", split, ("train", "test"))
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        raise MissingExtraError("aeon", "timeseries")
    folder = Path(spec.origin).parent / "datasets" / "data" / name
    return read_ts(folder / f"{name}_{split.upper()}.ts")


def read_ts(path: Path) -> tuple[Tensor, Tensor]:
    """Reads a file `.ts`: after `@data` a line for each series, channels apart by colons, the class last.

    Raises:
        FileFormatError: no series, series of unequal length, or something that is no number.
    """
    try:
        header, _, body = path.read_text(encoding="utf-8").partition("@data")
        names = next(line.split()[2:] for line in header.splitlines() if line.startswith("@classLabel true"))
        series, labels = [], []
        for line in body.split():
            *channels, label = line.split(":")
            series.append([[float(value) for value in channel.split(",")] for channel in channels])
            labels.append(sorted(names).index(label))
        if not series:
            raise ValueError("nothing after @data")
        return torch.tensor(series, dtype=torch.float32), torch.tensor(labels)
    except (OSError, StopIteration, ValueError) as error:
        raise FileFormatError(f"{path} has no series of equal length with classes: {error!r}") from error
