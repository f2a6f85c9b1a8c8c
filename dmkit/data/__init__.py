"""Images to train on and to measure against, all of them usable without a network.

    from dmkit import data

    clothes = data.load("fashion-mnist", split="train", resolution=32)
    clothes[0]["images"]  # float32 (1, 32, 32) in [-1, 1]
    mine = data.load("path/to/pictures", resolution=64)

`data.names()` lists the sets that have a name; each one's licence and source is in the docstring of its
loader and in the `.license` and `.citation` of what is loaded. `python -m dmkit.data.fetch` gets those that
no Python package carries.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from ..errors import MissingDataError, unknown_name
from .dataset import DecodedPixels, ImageDataset, Rows

__all__ = ["DecodedPixels", "ImageDataset", "Rows", "load", "names"]

# name -> (module, function); a module is imported when its set is loaded.
_NAMED = {
    "digits": ("digits", "load_digits"),
    "emoji": ("scenes", "load"),
    "emoji-google": ("emoji", "load_google"),
    "emoji-twitter": ("emoji", "load_twitter"),
    "fashion-mnist": ("fashion", "load"),
    "mnist5k": ("digits", "load_mnist5k"),
}
_SPLITS = {"emoji": ("train", "test", "unseen")}


def names() -> list[str]:
    """The data sets that `load` knows by name."""
    return sorted(_NAMED)


def load(
    name_or_path: str | os.PathLike,
    split: str = "train",
    resolution: int | None = None,
    *,
    channels: int | None = None,
    caption_column: str = "text",
    root: str | os.PathLike | None = None,
) -> ImageDataset:
    """A data set by name, a folder of pictures, or a data set of the library `datasets`.

    Args:
        name_or_path: one of `names()`; a folder (`dmkit.data.folder` says how labels and captions are found;
            write `./digits` for a folder that is called like a named set); a folder of a saved data set of
            `datasets`; or a hub name `owner/name`.
        split: "train" or "test" for the named sets, "unseen" too for `emoji`; whatever splits the others
            have.
        resolution: side of the square images in pixels; the set's own by default.
        channels: 1 (grey) or 3 (RGB), for folders and `datasets`; those of the first picture by default.
        caption_column: where folders (`metadata.jsonl`) and `datasets` keep the captions.
        root: folder of fetched data; the environment variable DMKIT_DATA, or `./data`, by default.

    Raises:
        ValueError: an unknown name or split (the message names the near one), or an impossible size.
        MissingDataError: the data is not on this machine; the message says how to get it.
        FileFormatError: the data is damaged.
    """
    name = os.fspath(name_or_path)
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution is a side in pixels, at least 1, not {resolution}.")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is 1 (grey) or 3 (RGB), not {channels}.")
    if name in _NAMED:
        splits = _SPLITS.get(name, ("train", "test"))
        if split not in splits:
            raise unknown_name(f"split of {name}", split, splits)
        module, function = _NAMED[name]
        loader = getattr(importlib.import_module(f".{module}", __name__), function)
        dataset: ImageDataset = loader(split, resolution, None if root is None else Path(root))
        if channels not in (None, dataset.channels):
            raise ValueError(f"{name} has {dataset.channels} channels, not {channels}.")
        return dataset
    from . import folder, hub

    path = Path(name).expanduser()
    if path.is_dir() and not hub.is_saved(path):
        return folder.load(path, split, resolution, channels, caption_column)
    if path.is_dir() or (name.count("/") == 1 and name[0] not in "./~"):
        return hub.load(str(path) if path.is_dir() else name, split, resolution, channels, caption_column)
    if len(path.parts) > 1:
        raise MissingDataError(f"There is no folder {name}.")
    raise unknown_name("data set", name, _NAMED)
