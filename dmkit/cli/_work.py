"""What the commands do alike: open a model, show progress, write results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any


def open_pipeline(model: str, device: str | None) -> Any:
    """A pipeline from the zoo, a folder or the hub, on its device and without progress bars of its own.

    Raises:
        ValueError: an unknown model (the message names the near one), a pipeline that is neither an
            unconditional one nor text-to-image, or a device that is not there.
        FileFormatError: a folder that is not a whole pipeline, or lacks weights.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from .. import zoo
    from ..errors import FileFormatError

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it remarks on image processors that nothing here uses
    pipe: Any = zoo.load(model)
    parts = set(pipe.components)
    if parts != {"unet", "scheduler"} and not {"tokenizer", "scheduler"} <= parts:
        raise ValueError(
            f"{type(pipe).__name__} is neither text-to-image nor an unconditional pipeline of a unet and a "
            f"scheduler; it has {', '.join(sorted(parts))}."
        )
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    if any(parameter.is_meta for network in networks for parameter in network.parameters()):
        raise FileFormatError(f"The pipeline {model} lacks weights that its configuration calls for.")
    pipe.set_progress_bar_config(disable=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


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


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON has it, without Diffusers' bookkeeping."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in kept.items()}


def provenance(**parameters: Any) -> dict[str, Any]:
    """What is written beside a result: the parameters that were given and the versions that made it."""
    import diffusers
    import torch

    from .. import __version__

    versions = {"dmkit": __version__, "diffusers": diffusers.__version__, "torch": str(torch.__version__)}
    given = {
        # JSON has no infinity, which is the PSNR of equal images.
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in parameters.items()
        if value is not None
    }
    return {**given, "versions": versions}


def fresh_folder(path: Path) -> Path:
    """Creates a folder for results.

    Raises:
        ValueError: the path is a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; --out takes a folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path
