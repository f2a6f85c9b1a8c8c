"""`dmkit sample`: images from a model, with one sampler or several side by side."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from . import _options as options


def sample(
    model: options.Model,
    scheduler: Annotated[str, typer.Option(help="A sampler's name; see `dmkit models`.")] = "ddim",
    compare: Annotated[
        str | None,
        typer.Option(help="Several samplers on the same seeds, e.g. ddim,ts-ddim.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 10,
    num_images: Annotated[int, typer.Option(min=1, max=100_000, help="Images for each sampler.")] = 16,
    seed: options.Seed = 0,
    prompt: options.Prompt = None,
    negative_prompt: options.Prompt = None,
    guidance_scale: Annotated[float | None, typer.Option(help="For text-to-image models.")] = None,
    time_shift_window: options.TimeShiftWindow = None,
    time_shift_cutoff: options.TimeShiftCutoff = None,
    setting: options.Set = None,
    batch_size: options.BatchSize = 64,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs/sample"),
) -> None:
    """Sample images; each PNG carries the parameters that made it.

    Examples:

        dmkit sample fashion --scheduler ts-ddim --steps 10 --time-shift-window 40 --time-shift-cutoff 200

        dmkit sample fashion --compare ddim,ts-ddim,dpm++ --steps 10 --num-images 36

        dmkit sample path/to/pipeline --scheduler bdia --set gamma=0.5
    """
    import torch

    from .. import zoo
    from ..images import grid, save_png, side_by_side, to_pil
    from ..sampling import generate_batches
    from ..schedulers.registry import build

    chosen = options.settings(
        setting, time_shift_window=time_shift_window, time_shift_cutoff=time_shift_cutoff
    )
    pipe = zoo.load(model)
    pipe.set_progress_bar_config(disable=True)
    samplers = {
        name: build(name, pipe.scheduler.config, ignore_foreign=compare is not None, **chosen)
        for name in options.names(compare or scheduler)
    }
    folder = options.fresh_folder(out)
    text = {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
    text = {key: value for key, value in text.items() if value is not None}
    sheets = []
    for name, sampler in samplers.items():
        about = options.provenance(
            model=model,
            sampler=name,
            steps=steps,
            prompt=prompt,
            **text,
            scheduler=options.plain(sampler.config),
        )
        with options.progress(num_images, name) as advance:
            shown: list[torch.Tensor] = []
            batches = generate_batches(
                pipe, sampler, steps, num_images, seed=seed, batch_size=batch_size, prompt=prompt, **text
            )
            for number, image in enumerate(itertools.chain.from_iterable(batches), start=seed):
                save_png(to_pil(image), folder / name / f"{number:06d}.png", {**about, "seed": number})
                shown += [image] if len(shown) < 64 else []
                advance()
        sheets.append(grid(torch.stack(shown), scale=max(1, 64 // shown[0].shape[-1])))
    labels = [f"{name}, {steps} steps" for name in samplers]
    about = options.provenance(
        model=model, samplers=list(samplers), steps=steps, seed=seed, prompt=prompt, **text
    )
    sheet = save_png(side_by_side(sheets, labels), folder / "grid.png", about)
    typer.echo(f"{num_images} images for each of {', '.join(samplers)} in {folder}; together in {sheet}")
