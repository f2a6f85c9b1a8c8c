"""The `dmkit` command: sample, invert, evaluate and tune, on shipped models and your own.

Every heavy import stands inside the command that needs it, so that `dmkit --help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from ..errors import DmkitError
from . import demo, evaluate, invert, models, sample, tune

app = typer.Typer(
    name="dmkit",
    help="Better few-step samples and exact inversion for Diffusers models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("models")(models.models)
app.command("sample")(sample.sample)
app.command("invert")(invert.invert)
app.command("evaluate")(evaluate.evaluate)
app.command("demo")(demo.demo)
app.add_typer(tune.app, name="tune")


def main() -> None:
    """Runs the command line; an error that a user can act on is one line, not a traceback."""
    try:
        app()
    except (DmkitError, ValueError, TypeError, OSError) as error:
        print(f"dmkit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
