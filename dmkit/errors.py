"""The one family of errors that dmkit raises for files, runs and names; plain `ValueError`/`TypeError` stay
for arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any


class DmkitError(Exception):
    """Base of everything that dmkit raises about files, data sets, checkpoints and runs."""


class FileFormatError(DmkitError, ValueError):
    """A file is truncated, foreign, of another version, or does not fit what it is loaded into."""


class MissingDataError(DmkitError, FileNotFoundError):
    """A data set or model is not on this machine; the message says exactly how to get it."""


class TrainingError(DmkitError, RuntimeError):
    """Training had to stop (for example a loss that is not finite); the message names the last good
    checkpoint.
    """


class MissingExtraError(DmkitError, ImportError):
    """A library of one of the optional extras is needed; the message names the extra."""

    def __init__(self, library: str, extra: str):
        super().__init__(f"{library} is needed for this; install it with: pip install 'dmkit[{extra}]'")


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """A `ValueError` that says which names exist and which is nearest to the one that was given."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"Unknown {what} {name!r}.{hint} Known: {', '.join(known)}.")


def refuse_idle(arguments: Any, names: Iterable[str], needed: str) -> None:
    """Raises ValueError for a flag that was set to something and would do nothing.

    Args:
        arguments: a dataclass of flags.
        names: its fields that have no effect as the others stand.
        needed: what would give them one, as the message says it.
    """
    defaults = {f.name: f.default for f in fields(arguments)}
    for name in names:
        if getattr(arguments, name) != defaults[name]:
            raise ValueError(f"--{name} does nothing without {needed}.")


def check_finite(name: str, value: float) -> None:
    """Raises ValueError for a number that is NaN or infinite; the message names it."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}.")


def compiled(name: str, pattern: str) -> re.Pattern[str]:
    """A regular expression that somebody gave; ValueError, which names the argument and it, if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}.") from error
