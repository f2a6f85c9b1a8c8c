"""Domains of digits: one set of labels, and inputs that differ by more than chance.

`shifted` makes five of scikit-learn's 8x8 digits; `digit_family` has four that come from different sources,
of those in Digit-Five that Python packages carry or that can be made: MNIST, MNIST-M, a set of digits from
other writers (scikit-learn's, in the place of USPS), and digits drawn from a typeface. SVHN is in none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from .... import data
from ....data.corruptions import gaussian_blur
from ....data.digits import digit_tensors
from ....data.photos import random_crops
from .server import Labelled

SHIFTS, FAMILY = ("plain", "blurred", "left", "pale", "right"), ("mnist", "mnist-m", "optical", "drawn")


def rotate(images: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """Each image (N, C, H, W) turned about its middle by an angle from [low, high] degrees, black around."""
    turn = (low + (high - low) * torch.rand(len(images), generator=generator)) * math.pi / 180
    c, s, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    maps = torch.stack([torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _noise(images: Tensor, size: float, generator: Generator) -> Tensor:
    return (images + size * torch.randn(images.shape, generator=generator)).clamp(0, 1)


_SHIFT: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "plain": lambda x, g: x,
    "blurred": lambda x, g: _noise(gaussian_blur(x, 0.5) * 1.3, 0.15, g),
    "left": lambda x, g: rotate(x, -30, -10, g),
    "pale": lambda x, g: x.sqrt() * 0.6 + 0.3,
    "right": lambda x, g: _noise(rotate(x, 15, 35, g) * 0.7 + 0.2, 0.12, g),
}


def shifted(target: str = "right", seed: int = 0) -> tuple[list[Labelled], Tensor, Labelled]:
    """Four clients with a domain each, and a site with the fifth; no digit is in two of the six parts.

    Args:
        target: the site's domain, one of `SHIFTS`.
        seed: of the parts, and of turns and noise.

    Returns:
        The clients, about 300 images (n, 1, 8, 8) each; the site's inputs; its test inputs and labels.
    """
    images, labels = digit_tensors(seed)
    generator = torch.Generator().manual_seed(seed)
    parts = list(zip(images.tensor_split(6), labels.tensor_split(6), strict=True))
    domains = [name for name in SHIFTS if name != target] + [target, target]
    moved = [(_SHIFT[name](x, generator), y) for name, (x, y) in zip(domains, parts, strict=True)]
    return moved[:4], moved[4][0], moved[5]


def digit_family(
    target: str = "optical", seed: int = 0, rows: int = 500
) -> tuple[list[Labelled], Tensor, Labelled]:
    """Three clients with a source of digits each, and a site with the fourth.

    Args:
        target: the site's source, one of `FAMILY`.
        seed: of what is drawn.
        rows: of each client, of the site's inputs and of its test; at most 740.

    Returns:
        As `shifted`, of 16x16 pixels in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = {name: 2 * rows if name == target else rows for name in FAMILY}
    written, answers = _shuffled("mnist5k", wanted["mnist"] + wanted["mnist-m"], generator)
    whole = {"mnist": (written[: wanted["mnist"]], answers[: wanted["mnist"]])}
    blended, labels = written[wanted["mnist"] :], answers[wanted["mnist"] :]
    photos, _ = random_crops(len(blended), generator, size=16, pool=2)
    whole["mnist-m"] = ((photos.mean(1, keepdim=True) / 2 + 0.5 - blended).abs(), labels)
    whole["optical"] = _shuffled("digits", wanted["optical"], generator)
    whole["drawn"] = drawn(wanted["drawn"], generator)
    clients = [whole[name] for name in FAMILY if name != target]
    inputs, labels = whole[target]
    return clients, inputs[:rows], (inputs[rows:], labels[rows:])


def _shuffled(name: str, rows: int, generator: Generator) -> Labelled:
    """Rows of a data set at 16x16."""
    found = data.load(name, split="train", resolution=16)
    chosen = torch.randperm(len(found), generator=generator)[:rows]
    if found.labels is None or len(chosen) < rows:
        raise ValueError(f"{name} has {len(found)} rows with labels, not {rows}.")
    return found.images_uint8(chosen.tolist()).float() / 255, found.labels[chosen]


def drawn(rows: int, generator: Generator) -> Labelled:
    """Digits in a typeface, at random sizes, places, turns and brightness on grey: (rows, 1, 16, 16)."""
    labels = torch.randint(10, (rows,), generator=generator)
    draws = torch.rand(rows, 5, generator=generator)
    images = torch.empty(rows, 1, 16, 16)
    for k, (label, (size, right, down, ink, paper)) in enumerate(
        zip(labels.tolist(), draws.tolist(), strict=True)
    ):
        canvas = Image.new("L", (16, 16), round(100 * paper))
        font = ImageFont.load_default(size=11 + 6 * size)
        place = (8 + 3 * (right - 0.5), 8 + 3 * (down - 0.5))
        ImageDraw.Draw(canvas).text(place, str(label), fill=round(180 + 75 * ink), font=font, anchor="mm")
        images[k, 0] = torch.from_numpy(np.array(canvas, dtype=np.float32) / 255)
    return _noise(rotate(images, -15, 15, generator), 0.05, generator), labels
