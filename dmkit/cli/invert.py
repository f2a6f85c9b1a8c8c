"""`dmkit invert`: an image's noise code, and how exactly it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as options

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def open_image(path: Path, size: int | tuple[int, int] | None, channels: int) -> Image:
    """An image file as the model takes it: on white where transparent, cropped to the middle, resized.

    Raises:
        ValueError: not a readable image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = ImageOps.exif_transpose(Image.open(path))
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    if picture.mode in ("RGBA", "LA", "P", "PA"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is None:
        return picture
    target = (size, size) if isinstance(size, int) else (size[1], size[0])
    return picture if picture.size == target else ImageOps.fit(picture, target, Image.Resampling.LANCZOS)


def expected_size(pipe: Any) -> tuple[int | None, int]:
    """(pixels a side, channels) of the images that a pipeline takes; None: any side."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return denoiser.config.sample_size, denoiser.config.in_channels
    side = getattr(denoiser.config, "sample_size", None)
    return (side * pipe.vae_scale_factor if side else None), vae.config.in_channels


def errors(original: torch.Tensor, returned: torch.Tensor) -> dict[str, float]:
    """How far a reconstruction is off: max-abs error and PSNR in dB, for images in [-1, 1]."""
    from ..metrics import max_abs_error, psnr

    return {"max_abs": float(max_abs_error(returned, original)), "psnr_db": float(psnr(returned, original))}


def invert(
    model: options.Model,
    image: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The image to invert.")],
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Levels of the noise grid.")] = 50,
    gamma: Annotated[float, typer.Option(help="BDIA's gamma, 0.92 to 1 for inversion.")] = 1.0,
    method: Annotated[str, typer.Option(help="bdia, or a baseline: ddim, edict.")] = "bdia",
    bitwise: Annotated[bool, typer.Option("--bitwise", help="Bit-exact inversion (gamma = 1).")] = False,
    prompt: options.Prompt = None,
    guidance_scale: Annotated[float, typer.Option(help="For text-to-image models.")] = 1.0,
    strength: Annotated[float, typer.Option(help="Part of the noise grid to climb, in (0, 1].")] = 1.0,
    out: Annotated[Path, typer.Option(help="Folder for the pair and the pictures.")] = Path("outputs/invert"),
) -> None:
    """Invert an image to noise, bring it back, and say how exactly it came back.

    The noise code is a pair of states; it is saved as pair.safetensors and pair.json, which
    `dmkit.schedulers.BDIALatentPair.from_pretrained` reads.

    Examples:

        dmkit invert fashion --image boot.png --steps 20

        dmkit invert fashion --image boot.png --steps 50 --bitwise

        dmkit invert fashion --image boot.png --method ddim
    """
    from .. import zoo
    from ..images import save_png, side_by_side, to_pil
    from ..schedulers import decode, encode, reconstruct
    from ..schedulers import invert as run

    pipe = zoo.load(model)
    pipe.set_progress_bar_config(disable=True)
    picture = open_image(image, *expected_size(pipe))
    folder = options.fresh_folder(out)
    z_0 = encode(pipe, picture)
    pair = run(
        pipe,
        latents=z_0,
        prompt=prompt,
        num_inference_steps=steps,
        gamma=gamma,
        guidance_scale=guidance_scale,
        strength=strength,
        method=method,
        reversible="bitwise" if bitwise else "algebraic",
    )
    pair.save_pretrained(folder)
    returned = reconstruct(pipe, pair)
    found = {"latents": errors(z_0, returned.latents), "bit_equal": bool((z_0 == returned.latents).all())}
    if getattr(pipe, "vae", None) is not None:
        found["pixels"] = errors(decode(pipe, z_0), returned.image)
    about = options.provenance(
        model=model,
        method=method,
        steps=steps,
        gamma=gamma,
        bitwise=bitwise,
        strength=strength,
        prompt=prompt,
        **found,
    )
    save_png(to_pil(returned.image[0]), folder / "reconstruction.png", about)
    scale = max(1, 160 // picture.width)
    labels = ["original", f"{method}, {steps} steps\nPSNR {found['latents']['psnr_db']:.1f} dB"]
    shown = [p.resize((p.width * scale, p.height * scale), 0) for p in (picture, to_pil(returned.image[0]))]
    save_png(side_by_side(shown, labels), folder / "comparison.png", about)
    typer.echo(f"pair and pictures in {folder}")
    for space, figures in found.items():
        if isinstance(figures, dict):
            typer.echo(f"{space}: max error {figures['max_abs']:.3g}, PSNR {figures['psnr_db']:.1f} dB")
    typer.echo(f"bit for bit the same: {'yes' if found['bit_equal'] else 'no'}")
