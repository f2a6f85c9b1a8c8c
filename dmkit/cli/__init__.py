"""The `dmkit` command: sample, invert, edit, evaluate and tune, on shipped models and your own.

Every heavy import stands inside the command that needs it, so that `dmkit --help` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import DmkitError
from . import demo, edit, erase, evaluate, invert, methods, models, sample, scaling, tune
from .app import app as serve

# Of click or of Typer's own copy of it, by Typer's version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # type: ignore[assignment]


class _OneLineErrors(TyperGroup):
    """What a user can act on is said in one line, with exit code 2, and not in a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except (typer.Abort, KeyboardInterrupt):
            message, code = "interrupted", 130
        except _UsageError as error:
            message, code = error.format_message(), 2  # type: ignore[attr-defined]
        except (DmkitError, ValueError, TypeError, OSError) as error:
            message, code = str(error), 2
        else:
            message = ""
        if message:
            print("dmkit:", " ".join(message.split()), file=sys.stderr)
        sys.exit(code)


app = typer.Typer(
    name="dmkit",
    cls=_OneLineErrors,
    help="Better few-step samples and exact inversion for Diffusers models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print("dmkit", __version__)
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What goes before a command."""


app.command("models")(models.models)
app.command("methods")(methods.methods)
app.command("sample")(sample.sample)
app.command("invert")(invert.invert)
app.command("edit")(edit.edit)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(tune.app, name="tune")
app.add_typer(erase.app, name="erase")
app.add_typer(scaling.app, name="scaling")
app.command("demo")(demo.demo)
app.command("app")(serve)


def main() -> None:
    """Runs the command line."""
    warnings.formatwarning = lambda message, *_, **__: f"dmkit: warning: {' '.join(str(message).split())}\n"
    app()
