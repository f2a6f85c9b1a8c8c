"""`dmkit sample`: images from a model, with one sampler or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as options

if TYPE_CHECKING:
    from torch import Tensor

MOST_SHOWN = 64  # images in a sampler's part of the grid


def sample(
    model: options.Model,
    scheduler: Annotated[str, typer.Option(help="A sampler's name; see `dmkit models`.")] = "ddim",
    compare: Annotated[
        str | None,
        typer.Option(
            help="Several samplers on the same seeds, e.g. ddim,ts-ddim, instead of one.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 10,
    num_images: Annotated[int, typer.Option(min=1, max=100_000, help="Images for each sampler.")] = 16,
    seed: options.Seed = 0,
    prompt: options.Prompt = None,
    negative_prompt: options.Prompt = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="For text-to-image models; the pipeline's own by default, 1 for one-step models."),
    ] = None,
    nasa: Annotated[
        float | None,
        typer.Option(
            help="Steer away from the negative prompt in the attention, for few steps without guidance."
        ),
    ] = None,
    nag: Annotated[
        float | None, typer.Option(help="The same by NAG, which bounds the change; 2 to 4.")
    ] = None,
    time_shift_window: options.TimeShiftWindow = None,
    time_shift_cutoff: options.TimeShiftCutoff = None,
    setting: options.Set = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs/sample"),
) -> None:
    """Sample images; each PNG carries the parameters that made it.

    Examples:

        dmkit sample fashion --scheduler ts-ddim --steps 10 --time-shift-window 40 --time-shift-cutoff 200

        dmkit sample fashion --compare ddim,ts-ddim,dpm++ --steps 10 --num-images 36

        dmkit sample path/to/pipeline --scheduler bdia --set gamma=0.5

        dmkit sample emoji --prompt "a car" --negative-prompt "a red car" --nasa 0.4 --steps 4
    """
    import torch

    from ..images import grid, save_png, side_by_side, to_pil
    from ..records import plain, provenance
    from ..schedulers.registry import build_all, check_steps
    from ..zoo.opening import guidance_for, open_pipeline
    from . import _work as work

    chosen = options.settings(
        setting, time_shift_window=time_shift_window, time_shift_cutoff=time_shift_cutoff
    )
    pipe = open_pipeline(model, device)
    samplers = build_all(options.names(compare or scheduler), pipe.scheduler.config, **chosen)
    for name, sampler in samplers.items():
        check_steps(name, sampler, steps)
    guidance_scale = guidance_for(model, guidance_scale)
    text = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
    text = {key: value for key, value in text.items() if value is not None}
    steering = {key: value for key, value in {"nasa": nasa, "nag": nag}.items() if value is not None}
    call = _steered(pipe, steering, negative_prompt) if steering else None
    folder = work.fresh_folder(out)
    sheets = []
    for name, sampler in samplers.items():
        config = plain(sampler.config)
        about = provenance(model=model, sampler=name, steps=steps, **text, **steering, scheduler=config)
        shown: list[Tensor] = []
        with work.progress(num_images, name) as advance, work.delivering(pipe, sampler):
            for start in range(seed, seed + num_images, batch_size):
                seeds = range(start, min(start + batch_size, seed + num_images))
                images = _batch(pipe, name, sampler, steps, seeds, {**text, "call": call}, advance)
                for number, image in zip(seeds, images, strict=True):
                    save_png(to_pil(image), folder / name / f"{number:06d}.png", {**about, "seed": number})
                shown += images[: MOST_SHOWN - len(shown)]
        sheets.append(grid(torch.stack(shown), scale=max(1, 64 // shown[0].shape[-1])))
    about = provenance(
        model=model,
        samplers=list(samplers),
        steps=steps,
        seed=seed,
        num_images=num_images,
        **text,
        **steering,
    )
    labels = [f"{name}, {steps} steps" for name in samplers]
    sheet = save_png(side_by_side(sheets, labels), folder / "grid.png", about)
    typer.echo(f"{num_images} images for each of {', '.join(samplers)} in {folder}; together in {sheet}")


def _steered(pipe: Any, steering: dict[str, float], negative_prompt: str | None) -> Any:
    """What is called in the pipeline's place.

    Raises:
        ValueError: both ways to steer at once, nothing to steer away from, or a model that takes no text.
    """
    from ..guidance import NASA

    if len(steering) > 1:
        raise ValueError("Give one of --nasa and --nag.")
    if not negative_prompt:
        raise ValueError("--nasa and --nag steer away from a --negative-prompt: give one.")
    ((mode, scale),) = steering.items()
    return NASA(pipe, scale, mode=mode)


def _batch(
    pipe: Any, name: str, sampler: Any, steps: int, seeds: range, text: dict[str, Any], advance: Any
) -> Tensor:
    """One image a seed; `advance` hears of each step as a part of so many images."""
    from ..evaluation import check_finite
    from ..sampling import generate

    images = generate(
        pipe, sampler, steps, seeds, on_step=lambda _, total: advance(len(seeds) / total), **text
    )
    return check_finite(images, f"{name} at {steps} steps")
