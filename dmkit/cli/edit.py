"""`dmkit edit`: an image under another prompt, and what stayed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as options
from .invert import comparison, flat, open_for


def edit(
    model: options.Model,
    image: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="The image to edit.", show_default=False)
    ],
    source_prompt: Annotated[str, typer.Option(help="What the image shows.", show_default=False)],
    target_prompt: Annotated[str, typer.Option(help="What it shall show.", show_default=False)],
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Levels of the noise grid.")] = 50,
    gamma: Annotated[float, typer.Option(help="BDIA's gamma, 0.85 to 1.")] = 0.94,
    guidance_scale: Annotated[float, typer.Option(help="Guidance of the edit.")] = 3.0,
    source_guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance of the inversion; by default the edit's.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Part of the noise grid to climb, in (0, 1]; less keeps more.")
    ] = 0.8,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Where the image may change: a picture, white where it may, or auto.", metavar="FILE|auto"
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="bdia, or a baseline: edict, ddim.")] = "bdia",
    device: options.Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the errors.")] = Path("outputs/edit"),
) -> None:
    """Invert an image under one prompt and regenerate it under another.

    With equal prompts the image comes back, up to the autoencoder. Outside a mask it does so under any
    prompt. OUT then holds original.png, reconstruction.png, edit.png, comparison.png, errors.json and, with a
    mask, mask.png.

    Examples:

        dmkit edit emoji heart.png --source-prompt "a red heart" --target-prompt "a blue heart"

        dmkit edit emoji heart.png --source-prompt "a red heart" --target-prompt "a blue heart" --mask auto

        dmkit edit emoji cat.png --source-prompt "a cat" --target-prompt "a dog" --steps 20 --strength 0.6
    """
    import torch.nn.functional as F

    from .._files import save_json
    from ..images import save_png, to_pil
    from ..metrics import pixel_error
    from ..records import provenance
    from ..schedulers import decode, edit_image, encode
    from ..zoo.opening import open_pipeline
    from . import _work as work

    work.check_folder(out)
    pipe = open_pipeline(model, device)
    if "tokenizer" not in pipe.components:
        raise ValueError(f"{model} takes no prompts; dmkit edit needs a text-to-image model.")
    picture = open_for(pipe, image)
    region: Any = mask
    if mask is not None and mask != "auto":
        if not Path(mask).is_file():
            raise ValueError(f"--mask takes auto or a picture file; {mask!r} is not a file.")
        region = open_for(pipe, Path(mask))
    done = edit_image(
        pipe,
        picture,
        source_prompt,
        target_prompt,
        num_inference_steps=steps,
        gamma=gamma,
        guidance_scale=guidance_scale,
        source_guidance_scale=source_guidance_scale,
        strength=strength,
        mask=region,
        method=method,
    )
    # What the autoencoder alone makes of the image is what a perfect inversion gives back.
    z_0 = encode(pipe, picture)
    through_vae, returned, edited = decode(pipe, z_0), done.reconstruction.image, done.edit.image
    found = {
        "reconstruction_latents": pixel_error(z_0, done.reconstruction.latents),
        "reconstruction": pixel_error(through_vae, returned),
        "edit": pixel_error(through_vae, edited),
    }
    if done.mask is not None:
        kept = done.mask.expand_as(z_0) == 0
        kept_pixels = F.interpolate(done.mask, edited.shape[-2:]).expand_as(edited) == 0
        if kept.any():
            found["edit_latents_outside_mask"] = pixel_error(z_0[kept], done.edit.latents[kept])
            found["edit_outside_mask"] = pixel_error(through_vae[kept_pixels], edited[kept_pixels])

    folder = work.fresh_folder(out)
    about = provenance(
        model=model,
        image=image.name,
        source_prompt=source_prompt,
        target_prompt=target_prompt,
        method=method,
        steps=steps,
        gamma=gamma if method == "bdia" else None,
        guidance_scale=guidance_scale,
        source_guidance_scale=done.pair.guidance_scale,
        strength=strength,
        mask=mask,
        **flat(found),
    )
    pictures = {"original": picture, "reconstruction": to_pil(returned[0]), "edit": to_pil(edited[0])}
    if done.mask is not None:
        # `to_pil` takes [-1, 1].
        pictures["mask"] = to_pil(F.interpolate(done.mask * 2 - 1, edited.shape[-2:])[0])
    for name, one in pictures.items():
        save_png(one, folder / f"{name}.png", about)
    labels = {
        "original": f"original\n{source_prompt}",
        "reconstruction": f"reconstruction\nPSNR {found['reconstruction']['psnr_db']:.1f} dB",
        "edit": f"{method}, {steps} steps\n{target_prompt}",
        "mask": f"mask\n{mask}",
    }
    side_by_side = comparison([*pictures.values()], [labels[name] for name in pictures])
    save_png(side_by_side, folder / "comparison.png", about)
    save_json(folder / "errors.json", about)
    for name, error in found.items():
        typer.echo(
            f"{name.replace('_', ' ')}: max error {error['max_abs']:.3g}, PSNR {error['psnr_db']:.1f} dB"
        )
    typer.echo(f"the pictures and errors.json are in {folder}")
