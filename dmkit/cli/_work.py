"""What the commands do alike: show progress, write results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any


def delivering(pipe: Any, scheduler: Any) -> AbstractContextManager[None]:
    """Where Time-Shift has a label for each image: the context in which the network is given them."""
    if scheduler.config.get("time_shift_scope") != "sample":
        return nullcontext()
    from ..schedulers import per_sample_timesteps
    from ..schedulers.bdia.calling import denoiser

    return per_sample_timesteps(denoiser(pipe), scheduler)


@contextmanager
def progress(total: float, label: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; calling the result moves it on, by 1 or by the number given."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount=1.0: bar.advance(task, amount)


def check_folder(path: Path) -> None:
    """Raises ValueError where a folder for results cannot be: the path is a file."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; --out takes a folder.")


def fresh_folder(path: Path) -> Path:
    """Creates a folder for results.

    Raises:
        ValueError: the path is a file.
    """
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    return path
