"""Where data sets lie on this machine, and what is said when one does not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import MissingDataError

ROOT_VARIABLE = "DMKIT_DATA"


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of fetched data: `root`, else the environment variable DMKIT_DATA, else `./data`."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "data")


def find(name: str, candidates: Sequence[Path], how: str) -> Path:
    """The first candidate that exists.

    Args:
        name: the data set, for the message.
        candidates: files or folders, the preferred one first.
        how: the command that gets the data set.

    Raises:
        MissingDataError: none of them exists; the message says where it looked and how to get it.
    """
    for path in candidates:
        if path.exists():
            return path
    places = " or ".join(str(path) for path in candidates)
    raise MissingDataError(
        f"{name} is not on this machine (looked for {places}). Get it with: {how}. "
        f"Data elsewhere is found through the environment variable {ROOT_VARIABLE}."
    )
