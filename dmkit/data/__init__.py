"""Images to train on and to measure against, all of them usable without a network.

    from dmkit import data

    clothes = data.load("fashion-mnist", split="train", resolution=32)
    clothes[0]["images"]  # float32 (1, 32, 32) in [-1, 1]
    mine = data.load("path/to/pictures", resolution=64)

`data.names()` lists the sets that have a name; each one's licence and source is in the docstring of its
loader and in the `.license` and `.citation` of what is loaded. `python -m dmkit.data.fetch` gets those that no
Python package carries.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from ..errors import unknown_name
from .dataset import ImageDataset

__all__ = ["ImageDataset", "load", "names"]

# name -> (module, function); a module is imported when its set is loaded.
_NAMED = {
    "fashion-mnist": ("fashion", "load"),
}
_SPLITS = ("train", "test")


def names() -> list[str]:
    """The data sets that `load` knows by name."""
    return sorted(_NAMED)


def load(
    name_or_path: str | os.PathLike,
    split: str = "train",
    resolution: int | None = None,
    *,
    root: str | os.PathLike | None = None,
) -> ImageDataset:
    """A data set by name.

    Args:
        name_or_path: one of `names()`.
        split: "train" or "test".
        resolution: side of the square images in pixels; the set's own by default.
        root: folder of fetched data; the environment variable DMKIT_DATA, or `./data`, by default.

    Raises:
        ValueError: an unknown name or split; the message names the near one.
        MissingDataError: the data is not on this machine; the message says how to get it.
        FileFormatError: the data is damaged.
    """
    name = os.fspath(name_or_path)
    if name not in _NAMED:
        raise unknown_name("data set", name, _NAMED)
    if split not in _SPLITS:
        raise unknown_name("split", split, _SPLITS)
    module, function = _NAMED[name]
    loader = getattr(importlib.import_module(f".{module}", __name__), function)
    return loader(split, resolution, None if root is None else Path(root))
