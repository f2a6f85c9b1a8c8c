"""`dmkit invert`: an image's noise code, and how exactly it comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as options

if TYPE_CHECKING:
    from PIL.Image import Image


def open_for(pipe: Any, path: Path) -> Image:
    """An image file as the pipeline takes it: upright, on white, cropped to the middle square, resized.

    Raises:
        FileFormatError: not a readable image.
        ValueError: the model's images are not square.
    """
    from ..data.pictures import fit, open_picture
    from ..evaluation import image_size

    picture = open_picture(path)
    channels, size = image_size(pipe)
    if size is None:
        return picture
    if size[0] != size[1]:
        raise ValueError(f"Images are cropped to squares; this model's are {size[0]}x{size[1]}.")
    return fit(picture, size[0], channels)


def flat(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"pixels": {"max_abs": …}} -> {"pixels_max_abs": …}."""
    return {f"{name}_{key}": value for name, error in found.items() for key, value in error.items()}


def comparison(pictures: Sequence[Image], labels: Sequence[str]) -> Image:
    """Pictures of one size side by side under their labels, enlarged to about 160 pixels."""
    from ..images import side_by_side

    scale = max(1, 160 // pictures[0].width)
    shown = [picture.resize((picture.width * scale, picture.height * scale), 0) for picture in pictures]
    return side_by_side(shown, labels)


def invert(
    model: options.Model,
    image: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The image to invert.")],
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Levels of the noise grid.")] = 50,
    gamma: Annotated[float, typer.Option(help="BDIA's gamma, 0.92 to 1 for inversion.")] = 1.0,
    method: Annotated[str, typer.Option(help="bdia, or a baseline: ddim, edict.")] = "bdia",
    bitwise: Annotated[bool, typer.Option("--bitwise", help="Bit-exact inversion (gamma = 1).")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="What the image shows, for text-to-image models.")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="For text-to-image models.")] = 1.0,
    strength: Annotated[float, typer.Option(help="Part of the noise grid to climb, in (0, 1].")] = 1.0,
    max_amplification: Annotated[
        float, typer.Option(help="Largest growth of rounding errors (gamma^-steps) that is accepted.")
    ] = 1e3,
    device: options.Device = None,
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
    import torch

    from ..images import save_png, to_pil
    from ..metrics import pixel_error
    from ..records import provenance
    from ..schedulers import decode, encode, reconstruct
    from ..schedulers import invert as run
    from ..zoo.opening import open_pipeline
    from . import _work as work

    work.check_folder(out)
    pipe = open_pipeline(model, device)
    picture = open_for(pipe, image)
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
        max_amplification=max_amplification,
    )
    returned = reconstruct(pipe, pair)
    exact = torch.equal(z_0.to(returned.latents.dtype), returned.latents)
    found = {"pixels": pixel_error(decode(pipe, z_0), returned.image)}
    if getattr(pipe, "vae", None) is not None:
        found = {"latents": pixel_error(z_0, returned.latents), **found}

    folder = work.fresh_folder(out)
    pair.save_pretrained(folder)
    about = provenance(
        model=model,
        image=image.name,
        method=method,
        steps=steps,
        gamma=gamma if method == "bdia" else None,
        bitwise=bitwise,
        strength=strength,
        prompt=prompt,
        guidance_scale=guidance_scale if prompt is not None else None,
        bit_equal=exact,
        **flat(found),
    )
    after = to_pil(returned.image[0])
    save_png(after, folder / "reconstruction.png", about)
    labels = ["original", f"{method}, {steps} steps\nPSNR {found['pixels']['psnr_db']:.1f} dB"]
    save_png(comparison((picture, after), labels), folder / "comparison.png", about)
    for space, error in found.items():
        typer.echo(f"{space}: max error {error['max_abs']:.3g}, PSNR {error['psnr_db']:.1f} dB")
    typer.echo(f"bit for bit the same: {'yes' if exact else 'no'}")
    typer.echo(f"pair and pictures are in {folder}")
