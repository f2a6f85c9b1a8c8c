"""Tensors to pictures: grids with labels, and PNG files that carry the parameters they were made with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from ._files import atomic_file

PARAMETERS_KEY = "parameters"


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (any float dtype) -> uint8 of the same shape, clipped and rounded."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def to_pil(image: Tensor) -> Image.Image:
    """One image (C, H, W) in [-1, 1] with 1 or 3 channels -> PIL."""
    pixels = to_uint8(image).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def grid(images: Tensor, columns: int | None = None, scale: int = 1, gap: int = 1) -> Image.Image:
    """Images (N, C, H, W) in [-1, 1] in rows; as square as can be unless `columns` is given."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"A grid takes images (N, 1 or 3, H, W), not {tuple(images.shape)}.")
    tiles = [to_pil(image) for image in images]
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].width * scale, tiles[0].height * scale
    sheet = Image.new(tiles[0].mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for k, tile in enumerate(tiles):
        tile = tile.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, ((k % columns) * (width + gap), (k // columns) * (height + gap)))
    return sheet


def side_by_side(pictures: Sequence[Image.Image], labels: Sequence[str], gap: int = 12) -> Image.Image:
    """Pictures in one row, each under its label, on white."""
    if len(pictures) != len(labels) or not pictures:
        raise ValueError(f"{len(pictures)} pictures need as many labels, not {len(labels)}.")
    font = ImageFont.load_default(size=14)
    head = 4 + 18 * max(label.count("\n") + 1 for label in labels)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    widths = [
        max(picture.width, math.ceil(measure.multiline_textbbox((0, 0), label, font=font)[2]))
        for picture, label in zip(pictures, labels, strict=True)
    ]
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), head + height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    left = gap
    for picture, label, width in zip(pictures, labels, widths, strict=True):
        draw.multiline_text((left, 4), label, fill="black", font=font)
        sheet.paste(picture.convert("RGB"), (left, head))
        left += width + gap
    return sheet


def save_png(
    picture: Image.Image, path: str | os.PathLike, parameters: Mapping[str, Any] | None = None
) -> Path:
    """Saves a PNG atomically, with the parameters as JSON in its metadata (text chunk `parameters`)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_itxt(PARAMETERS_KEY, json.dumps(parameters))
    with atomic_file(path) as draft:
        picture.save(draft, format="PNG", pnginfo=info)
    return path
