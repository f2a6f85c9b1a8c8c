"""`dmkit demo`: the two main jobs on the shipped model, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs/demo"),
    steps: Annotated[int, typer.Option(min=5, max=100, help="Sampling steps.")] = 10,
    num_images: Annotated[int, typer.Option(min=4, max=64, help="Samples in each grid.")] = 36,
    seed: options.Seed = 0,
    device: options.Device = None,
) -> None:
    """DDIM beside Time-Shift on the same seeds, and a real image inverted by DDIM and by BDIA.

    Example:

        dmkit demo --out outputs/demo
    """
    import torch

    from .. import zoo
    from ..images import grid, save_png, side_by_side, to_pil
    from ..metrics import pixel_error
    from ..records import provenance
    from ..sampling import generate
    from ..schedulers import encode, invert, reconstruct
    from ..schedulers.registry import build
    from ..zoo.opening import open_pipeline
    from . import _work as work
    from .invert import open_for

    folder = work.fresh_folder(out)
    pipe = open_pipeline("fashion", device)

    seeds = range(seed, seed + num_images)
    sheets, labels = [], []
    for name, label in (("ddim", "DDIM"), ("ts-ddim", "Time-Shift DDIM")):
        sampler = build(name, pipe.scheduler.config)
        with work.progress(steps, label) as advance:
            images = generate(pipe, sampler, steps, seeds, on_step=lambda *_, tick=advance: tick())
        sheets.append(grid(images, scale=2))
        labels.append(f"{label}, {steps} steps, seeds {seeds[0]} to {seeds[-1]}")
    about = provenance(model="fashion", steps=steps, seed=seed, num_images=num_images)
    samples = save_png(side_by_side(sheets, labels), folder / "samples.png", about)

    path = zoo.examples("fashion")[0]
    original = encode(pipe, open_for(pipe, path))
    shown, labels = [to_pil(original[0])], [f"original\n{path.stem}"]
    for method, label in (("ddim", "DDIM inversion"), ("bdia", "BDIA, gamma 1")):
        pair = invert(pipe, latents=original, num_inference_steps=20, method=method)
        returned = reconstruct(pipe, pair).latents
        error = pixel_error(original, returned)
        exact = ", bit for bit" if torch.equal(original.to(returned.dtype), returned) else ""
        typer.echo(
            f"{label}, 20 steps: max error {error['max_abs']:.3g}, PSNR {error['psnr_db']:.1f} dB{exact}"
        )
        shown.append(to_pil(returned[0]))
        labels.append(f"{label}\n{error['psnr_db']:.1f} dB")
    shown = [picture.resize((192, 192), 0) for picture in shown]
    about = provenance(model="fashion", image=path.name, steps=20)
    triptych = save_png(side_by_side(shown, labels), folder / "inversion.png", about)
    typer.echo(f"Look at {samples} and {triptych}.")
