"""`dmkit tune`: settings chosen by measurement instead of by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options

app = typer.Typer(help="Choose a method's settings by measurement.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `tune` a group while it has one command."""


@app.command("time-shift")
def time_shift(
    model: options.Model,
    scheduler: Annotated[str, typer.Option(help="A Time-Shift sampler (ts-…).")] = "ts-ddim",
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Sampling steps.")] = 10,
    windows: Annotated[str, typer.Option(help="Window widths to try.")] = "0,10,20,40",
    cutoffs: Annotated[str, typer.Option(help="Cut-offs to try.")] = "200,300,400",
    num_images: Annotated[int, typer.Option(min=50, max=100_000, help="Samples for each pair.")] = 500,
    reference: Annotated[str | None, typer.Option(help="As in `dmkit evaluate`.")] = None,
    seed: options.Seed = 0,
    setting: options.Set = None,
    batch_size: options.BatchSize = 64,
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("outputs/tune"),
) -> None:
    """Grid search over Time-Shift's window and cut-off; the Fréchet distance decides.

    Report a tuned setting on other seeds than it was tuned on.

    Example:

        dmkit tune time-shift fashion --steps 10 --windows 0,20,40 --cutoffs 200,300 --num-images 500
    """
    from .. import zoo
    from .._files import save_json
    from ..evaluation import Reference, quality
    from ..schedulers import tune_time_shift
    from ..schedulers.registry import build

    if not scheduler.startswith("ts-"):
        raise ValueError(f"{scheduler!r} has no Time-Shift to tune; did you mean 'ts-{scheduler}'?")
    pipe = zoo.load(model)
    pipe.set_progress_bar_config(disable=True)
    against = Reference.load(reference or zoo.reference(model), pipe)
    chosen = options.settings(setting)
    tried_windows = options.numbers(windows, "--windows", least=0)
    tried_cutoffs = options.numbers(cutoffs, "--cutoffs", least=0)

    with options.progress(len(tried_windows) * len(tried_cutoffs) * num_images, "sampling") as advance:

        def distance(**overrides: object) -> float:
            sampler = build(scheduler, pipe.scheduler.config, **{**chosen, **overrides})
            figures = quality(
                pipe, sampler, steps, num_images, against, seed=seed, batch_size=batch_size, on_image=advance
            )
            return next(iter(figures.values()))

        result = tune_time_shift(distance, tried_windows, tried_cutoffs)
    folder = options.fresh_folder(out)
    about = options.provenance(model=model, sampler=scheduler, steps=steps, num_images=num_images, seed=seed)
    save_json(folder / "time-shift.json", {"about": about, **result.to_dict()})
    typer.echo(result.table())
    typer.echo(f"best: {result.best}; written to {folder / 'time-shift.json'}")
