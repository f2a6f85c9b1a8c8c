"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer

Model: TypeAlias = Annotated[
    str, typer.Argument(help="Zoo name (see `dmkit models`), pipeline folder, or hub id.", show_default=False)
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Image k has seed SEED + k.")]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, max=4096, help="Images sampled at once.")]
Prompt: TypeAlias = Annotated[str | None, typer.Option(help="Text, for text-to-image models.")]
Reference: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Data set or folder of pictures to compare with; `:SPLIT` may follow. Zoo models know their own."
    ),
]
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="Where to compute; cuda if there is one, else cpu.", show_default=False)
]
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
    """`a, b,c` -> [a, b, c], each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def numbers(text: str, option: str) -> list[int]:
    """`5,10` -> [5, 10].

    Raises:
        ValueError: something that is not a whole number of at least 1; the message names the option.
    """
    values = [_value(part) for part in names(text)]
    if not values or not all(type(value) is int and value >= 1 for value in values):
        raise ValueError(
            f"{option} takes whole numbers of at least 1, with commas between them, not {text!r}."
        )
    return values


def numbers_or_auto(text: str, option: str) -> list[float | str]:
    """`auto,0,20` -> ["auto", 0, 20].

    Raises:
        ValueError: something that is neither "auto" nor a number of at least 0; the message names the option.
    """
    values = [_value(part) for part in names(text)]
    if not values or not all(
        value == "auto" or (type(value) in (int, float) and value >= 0) for value in values
    ):
        raise ValueError(
            f"{option} takes numbers of at least 0, or auto, with commas between them, not {text!r}."
        )
    return values


def _value(text: str) -> Any:
    """A setting as YAML reads it: 40 -> int, 0.5 -> float, true -> bool, anything else stays a string."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} cannot be read as a value: {error}") from error
    try:
        return float(value) if isinstance(value, str) else value  # 1e-3 is no number to YAML
    except ValueError:
        return value


def settings(pairs: list[str] | None, **shorthands: str | None) -> dict[str, Any]:
    """Scheduler settings from `--set KEY=VALUE` and from options of their own that were given.

    Raises:
        ValueError: a pair without a key or an equals sign, or a value that cannot be read.
    """
    result = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set takes KEY=VALUE, not {pair!r}.")
        result[key.strip()] = _value(value)
    return result | {key: _value(value) for key, value in shorthands.items() if value is not None}
