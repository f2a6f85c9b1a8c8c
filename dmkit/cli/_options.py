"""Options and small helpers that several commands share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

Model: TypeAlias = Annotated[
    str, typer.Argument(help="Zoo name (see `dmkit models`), pipeline folder, or hub id.", show_default=False)
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Image k has seed SEED + k.")]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, max=4096, help="Images sampled at once.")]
Prompt: TypeAlias = Annotated[str | None, typer.Option(help="Text, for text-to-image models.")]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A scheduler setting, KEY=VALUE, as in its config; may be given several times."
    ),
]
TimeShiftWindow: TypeAlias = Annotated[
    str | None, typer.Option(help="Time-Shift: window width in timesteps, or auto; 0 turns it off.")
]
TimeShiftCutoff: TypeAlias = Annotated[
    str | None, typer.Option(help="Time-Shift: no shift at or below this timestep, or auto.")
]


def names(text: str) -> list[str]:
    """`a, b,c` -> [a, b, c]."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, what: str, least: int = 1) -> list[int]:
    """`5,10` -> [5, 10].

    Raises:
        ValueError: something that is not a whole number of at least `least`.
    """
    try:
        values = [int(part) for part in names(text)]
    except ValueError:
        raise ValueError(f"{what} takes whole numbers with commas between them, not {text!r}.") from None
    if not values or min(values) < least:
        raise ValueError(f"{what} takes whole numbers of at least {least}, not {text!r}.")
    return values


def _value(text: str) -> Any:
    """A setting as YAML reads it: 40 -> int, 0.5 -> float, true -> bool, anything else stays a string."""
    import yaml

    return yaml.safe_load(text)


def settings(pairs: list[str] | None, **shorthands: str | None) -> dict[str, Any]:
    """Scheduler settings from `--set KEY=VALUE` and from options of their own that were given."""
    result = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set takes KEY=VALUE, not {pair!r}.")
        result[key.strip()] = _value(value)
    return result | {key: _value(value) for key, value in shorthands.items() if value is not None}


def provenance(**parameters: Any) -> dict[str, Any]:
    """What is written into a picture's metadata: the parameters and the versions that made it."""
    import diffusers
    import torch

    from .. import __version__

    versions = {"dmkit": __version__, "diffusers": diffusers.__version__, "torch": str(torch.__version__)}
    return {key: value for key, value in parameters.items() if value is not None} | {"versions": versions}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config without Diffusers' bookkeeping keys."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@contextmanager
def progress(total: int, label: str) -> Iterator[Any]:
    """A progress bar; calling the result moves it on by one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar: Progress
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda *_: bar.advance(task)


def fresh_folder(path: Path) -> Path:
    """Creates a folder for results.

    Raises:
        ValueError: the path is a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; --out takes a folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path
