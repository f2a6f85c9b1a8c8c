"""`dmkit tune`: settings chosen by measurement instead of by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    reference: options.Reference = None,
    seed: options.Seed = 0,
    prompt: options.Prompt = None,
    setting: options.Set = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
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
    from ..records import provenance
    from ..schedulers import registry
    from ..schedulers.tuning import tune_time_shift
    from ..zoo.opening import open_pipeline
    from . import _work as work

    chosen = options.settings(setting)
    tried_windows = options.numbers_or_auto(windows, "--windows")
    tried_cutoffs = options.numbers_or_auto(cutoffs, "--cutoffs")
    if "time_shift_window" not in registry.known_settings(scheduler):
        raise ValueError(f"{scheduler!r} has no Time-Shift to tune; name one that has, such as 'ts-ddim'.")
    pipe = open_pipeline(model, device)

    def sampler_of(**overrides: Any) -> Any:
        sampler = registry.build(scheduler, pipe.scheduler.config, **{**chosen, **overrides})
        registry.check_steps(scheduler, sampler, steps)
        return sampler

    def fits(**overrides: Any) -> float:
        sampler_of(**overrides)
        return 0.0

    # A dry run counts the settings, and refuses what does not fit before the first image is sampled.
    cells = len(tune_time_shift(fits, tried_windows, tried_cutoffs).rows)
    against = Reference.load(reference or zoo.reference(model), pipe)
    folder = work.fresh_folder(out)
    with work.progress(cells * num_images, "sampling") as advance:

        def distance(**overrides: Any) -> float:
            sampler = sampler_of(**overrides)
            with work.delivering(pipe, sampler):
                (figure,) = quality(
                    pipe,
                    sampler,
                    steps,
                    num_images,
                    against,
                    seed=seed,
                    batch_size=batch_size,
                    prompt=prompt,
                    on_image=advance,
                ).values()
            return figure

        result = tune_time_shift(distance, tried_windows, tried_cutoffs)
    about = provenance(
        model=model,
        sampler=scheduler,
        steps=steps,
        num_images=num_images,
        seed=seed,
        prompt=prompt,
        reference=against.name,
        settings=chosen or None,
    )
    save_json(folder / "time-shift.json", {"about": about, **result.to_dict()})
    typer.echo(result.table())
    best = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in result.best.items())
    typer.echo(f"best: {best}\nThe table is in {folder / 'time-shift.json'}")
