"""From picture files and arrays to square uint8 tensors."""

from __future__ import annotations

import os
from typing import IO

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import FileFormatError

_MODES = {1: "L", 3: "RGB"}


def open_picture(source: str | os.PathLike | IO[bytes]) -> Image.Image:
    """A picture, upright (EXIF), on white where it is transparent, in mode L or RGB.

    Raises:
        FileFormatError: not a picture that Pillow can read, or a truncated one.
    """
    name = getattr(source, "name", source)
    try:
        with Image.open(source) as file:
            picture = upright(file)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{name} is not a picture that can be read: {error}") from error
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """See `open_picture`, for a picture that is open already."""
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        # Transparent pixels hold black in most files: dropping alpha would blacken the background.
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB")


def fit(picture: Image.Image, resolution: int, channels: int) -> Image.Image:
    """The largest centred square of a picture, resized to `resolution` pixels a side (Lanczos)."""
    picture = picture.convert(_MODES[channels])
    if picture.size == (resolution, resolution):
        return picture
    return ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> Tensor:
    """uint8 (C, H, W) of a picture in mode L or RGB."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, len(picture.getbands())).permute(2, 0, 1).contiguous()


def resize(images: Tensor, resolution: int) -> Tensor:
    """Square uint8 images (N, C, H, H) resampled to another side: bilinear, antialiased, in float32."""
    if images.shape[-1] == resolution:
        return images
    parts = [
        F.interpolate(part.float(), (resolution, resolution), mode="bilinear", antialias=True)
        for part in images.split(1024)
    ]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def pad(images: Tensor, resolution: int) -> Tensor:
    """uint8 images (N, C, H, H) in the middle of a black square of another side."""
    before = (resolution - images.shape[-1]) // 2
    after = resolution - images.shape[-1] - before
    return F.pad(images, (before, after, before, after))


def pad_or_resize(images: Tensor, resolution: int) -> Tensor:
    """28-pixel images on black as they are usually brought to size: up to 32 pixels by a black frame, which
    leaves the pixels alone; any other side by resampling.
    """
    return pad(images, resolution) if images.shape[-1] < resolution <= 32 else resize(images, resolution)
