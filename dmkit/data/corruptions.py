"""Natural corruptions of images, as CIFAR-10-C has them, for training images too.

D. Hendrycks, T. Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*,
ICLR 2019, arXiv:1903.12261. The definitions and the five severities are those of its script for 32x32 images;
that data set itself holds test images only, and a network that is to learn a corruption needs the rule.

    from dmkit.data.corruptions import NAMES, Corruption

    foggy = Corruption("fog", severity=5)(images, torch.Generator().manual_seed(0))

Every rule is a function of images x in [0, 1] with its parameters, so that other strengths than the five can
be had: `gaussian_noise(x, 0.45, generator)`. What is in pixels (widths of blurs) stays so at other sizes;
what is a share of the side (`pixelate`, `elastic_transform`) grows with it.

Of the paper's nineteen, `snow` and `spatter` are pictures in layers rather than a rule, and `frost` needs
photographs of ice that are not here: naming one raises NotImplementedError.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from ..errors import unknown_name

SMALLEST = 8
ABSENT = {
    "frost": "it lays photographs of frost over the image, which are not shipped",
    "snow": "it composes layers of drawn and blurred flakes; no rule of a few numbers gives the same",
    "spatter": "it composes drawn layers of water or mud; no rule of a few numbers gives the same",
}


# Noise


def gaussian_noise(x: Tensor, deviation: float, generator: Generator) -> Tensor:
    """x + N(0, deviation²)."""
    return x + deviation * torch.randn(x.shape, generator=generator, device=x.device)


def shot_noise(x: Tensor, photons: float, generator: Generator) -> Tensor:
    """Poisson(photons x) / photons."""
    return torch.poisson(photons * x, generator=generator) / photons


def impulse_noise(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """A share `amount` of the values becomes 0 or 1, with equal chances."""
    struck = torch.rand(x.shape, generator=generator, device=x.device) < amount
    salt = torch.rand(x.shape, generator=generator, device=x.device) < 0.5
    return torch.where(struck, salt.to(x.dtype), x)


def speckle_noise(x: Tensor, deviation: float, generator: Generator) -> Tensor:
    """x + x N(0, deviation²)."""
    return x + x * deviation * torch.randn(x.shape, generator=generator, device=x.device)


# Blur


def gaussian_blur(x: Tensor, sigma: float, generator: Generator | None = None) -> Tensor:
    """A Gaussian of `sigma` pixels; beyond its border an image goes on as it ends."""
    return _smooth(x, sigma, _nearest)


def defocus_blur(x: Tensor, radius: float, sigma: float, generator: Generator | None = None) -> Tensor:
    """A disc of `radius` pixels whose rim is softened by a Gaussian of `sigma`, cut off at one pixel."""
    reach = int(radius) + 1
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disc = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    rim = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) / sigma) ** 2)
    rim /= rim.sum()
    kernel = F.conv2d((disc / disc.sum())[None, None], (rim[:, None] * rim)[None, None], padding=1)
    padded = F.pad(x, [reach] * 4, mode="reflect")
    return _per_channel(padded, kernel[0, 0].to(x))


def glass_blur(x: Tensor, sigma: float, reach: int, rounds: int, generator: Generator) -> Tensor:
    """Blurred, each pixel swapped with one less than `reach` away or at -`reach`, `rounds` times, blurred.

    A true swap; the released script overwrites one of the two in images of several channels.
    """
    shuffled = _smooth(x, sigma, _nearest).flatten(2)
    count, channels, (height, width) = len(x), x.shape[1], x.shape[2:]
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                step = torch.randint(-reach, reach, (2, count), generator=generator, device=x.device)
                there = ((row + step[1]) * width + column + step[0])[:, None, None].expand(-1, channels, 1)
                here = row * width + column
                mine, other = shuffled[:, :, here : here + 1].clone(), shuffled.gather(2, there)
                shuffled[:, :, here : here + 1] = other
                shuffled.scatter_(2, there, mine)
    return _smooth(shuffled.view_as(x), sigma, _nearest)


def motion_blur(x: Tensor, radius: float, sigma: float, generator: Generator) -> Tensor:
    """Half a Gaussian along a line at an angle of U(-45, 45) degrees, as ImageMagick's."""
    angles = math.radians(90) * (_uniform(len(x), generator, x) - 0.5)
    steps = torch.arange(2 * math.ceil(radius) + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[2:])
    result = torch.zeros_like(x)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    for k, weight in zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True):
        down, right = ((k * part - 0.5).ceil().long()[:, None] for part in (angles.sin(), angles.cos()))
        at = _nearest(rows + down, x.shape[2])[:, :, None], _nearest(columns + right, x.shape[3])[:, None]
        result += weight * x.permute(0, 2, 3, 1)[(batch, *at)].permute(0, 3, 1, 2)
    return result


def zoom_blur(x: Tensor, furthest: float, generator: Generator | None = None) -> Tensor:
    """The mean of x and of its middle enlarged 1, 1.01, … times, up to but not with `furthest`."""
    zooms = [1 + k / 100 for k in range(round((furthest - 1) * 100))]
    return (x + sum(_zoomed(x, zoom) for zoom in zooms)) / (1 + len(zooms))


def _zoomed(x: Tensor, zoom: float) -> Tensor:
    size = x.shape[2:]
    part = [math.ceil(n / zoom) for n in size]
    first = [(n - p) // 2 for n, p in zip(size, part, strict=True)]
    middle = x[:, :, first[0] : first[0] + part[0], first[1] : first[1] + part[1]]
    enlarged = [round(p * zoom) for p in part]
    grown = F.interpolate(middle, enlarged, mode="bilinear", align_corners=True)
    top, left = ((e - n) // 2 for e, n in zip(enlarged, size, strict=True))
    return grown[:, :, top : top + size[0], left : left + size[1]]


# Weather and light


def fog(x: Tensor, amount: float, decay: float, generator: Generator) -> Tensor:
    """(x + amount · plasma) M / (M + amount), M the image's brightest value."""
    brightest = x.amax((1, 2, 3), keepdim=True)
    clouds = plasma(len(x), max(x.shape[2:]), decay, generator).to(x)
    clouds = clouds[:, None, : x.shape[2], : x.shape[3]]
    return (x + amount * clouds) * brightest / (brightest + amount)


def plasma(count: int, size: int, decay: float, generator: Generator) -> Tensor:
    """Clouds (count, S, S) in [0, 1] by the diamond-square algorithm on a torus, S the next power of two.

    Each halving of the grid adds U(-r, r) to the mean of four neighbours. r falls by decay² a level, and not
    by decay: the released script has its amplitude in the factor and in the bounds of the draw.
    """
    side = 2 ** math.ceil(math.log2(size))
    field = torch.zeros(count, side, side, device=generator.device)
    step, reach = side, 1.0

    def ragged(total: Tensor) -> Tensor:
        noise = torch.rand(total.shape, generator=generator, device=total.device)
        return total / 4 + reach * (2 * noise - 1)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        middles = ragged(rows + rows.roll(-1, 2))
        field[:, half::step, half::step] = middles
        field[:, ::step, half::step] = ragged(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        field[:, half::step, ::step] = ragged(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, reach = half, reach / decay**2
    field -= field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def brightness(x: Tensor, amount: float, generator: Generator | None = None) -> Tensor:
    """HSV's value + amount; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    # At constant hue and saturation all channels are proportional to the value.
    return torch.where(value > 0, x * brighter / value, brighter)


def contrast(x: Tensor, factor: float, generator: Generator | None = None) -> Tensor:
    """(x - m) factor + m, m the mean of the image's channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def saturate(x: Tensor, factor: float, amount: float, generator: Generator | None = None) -> Tensor:
    """HSV's saturation · factor + amount; hue and value stay. A grey pixel has the hue red.

    Raises:
        ValueError: grey images.
    """
    if x.shape[1] != 3:
        raise ValueError("saturate changes colours; it needs images of 3 channels.")
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0.0)
    wanted = (saturation * factor + amount).clamp(0, 1)
    # x = V - V S f(hue) with f in [0, 1]; f(red) is 0, 1, 1.
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    hue = torch.where(chroma > 0, (value - x) / chroma, red)
    return value - value * wanted * hue


# Digital


def jpeg_compression(x: Tensor, quality: int, generator: Generator | None = None) -> Tensor:
    """Stored as JPEG of this quality and read again."""

    def stored(picture: Image.Image) -> Image.Image:
        with io.BytesIO() as file:
            picture.save(file, "JPEG", quality=quality)
            return Image.open(file).convert(picture.mode)

    return _by_pictures(x, stored)


def pixelate(x: Tensor, share: float, generator: Generator | None = None) -> Tensor:
    """Shrunk to int(share · side) and enlarged again, by boxes."""

    def coarse(picture: Image.Image) -> Image.Image:
        width, height = (int(share * n) for n in picture.size)
        return picture.resize((width, height), Image.Resampling.BOX).resize(
            picture.size, Image.Resampling.BOX
        )

    return _by_pictures(x, coarse)


def elastic_transform(x: Tensor, amount: float, sigma: float, jitter: float, generator: Generator) -> Tensor:
    """A random affine map, then a displacement by smoothed noise; all three as shares of the side.

    The map takes three corners of the middle square to places U(-jitter, jitter) away; the displacement is
    `amount` times U(-1, 1) smoothed by a Gaussian of `sigma`.
    """
    height, width = x.shape[2:]
    side = min(height, width)
    y, z = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([z, y], dim=-1).to(x)  # (H, W, 2) as (column, row)
    centre, third = torch.tensor([width // 2, height // 2]), side // 3
    corners = centre + third * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    moved = corners.to(x) + jitter * side * (2 * _uniform((len(x), 3, 2), generator, x) - 1)
    # A pixel of the result is looked up where the map's inverse says: [moved, 1] Y = corners.
    inverse = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners.to(x).expand_as(moved))
    x = _looked_up(x, torch.einsum("hwi,nij->nhwj", F.pad(pixels, (0, 1), value=1.0), inverse), True)
    if not amount:
        return x
    noise = 2 * _uniform((len(x), 2, height, width), generator, x) - 1
    displacement = amount * side * _smooth(noise, sigma * side, _reflected, truncate=3.0)
    return _looked_up(x, pixels + displacement.permute(0, 2, 3, 1), False)


# What the rules share


def _uniform(shape: int | tuple[int, ...], generator: Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(like)


def _nearest(index: Tensor, size: int) -> Tensor:
    """An index beyond the border means the border."""
    return index.clamp(0, size - 1)


def _reflected(index: Tensor, size: int) -> Tensor:
    """An index beyond the border is mirrored at the border's outer edge."""
    index = index % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _per_channel(x: Tensor, kernel: Tensor) -> Tensor:
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), groups=channels)


def _smooth(
    x: Tensor, sigma: float, border: Callable[[Tensor, int], Tensor], truncate: float = 4.0
) -> Tensor:
    """A Gaussian, cut off after `truncate` sigma."""
    radius = int(truncate * sigma + 0.5)
    axis = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (axis.double() / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    for dim in (2, 3):
        size = x.shape[dim]
        index = border(torch.arange(-radius, size + radius, device=x.device), size)
        x = _per_channel(x.index_select(dim, index), kernel[:, None] if dim == 2 else kernel[None, :])
    return x


def _looked_up(x: Tensor, places: Tensor, through_centres: bool) -> Tensor:
    """x at (column, row) places (N, H, W, 2), between pixels linearly.

    Beyond the border x is mirrored: through the centres of its outermost pixels, or at their outer edges.
    """
    size = torch.tensor([x.shape[3], x.shape[2]], device=x.device, dtype=x.dtype)
    scaled = 2 * places / (size - 1) - 1 if through_centres else (2 * places + 1) / size - 1
    return F.grid_sample(x, scaled, padding_mode="reflection", align_corners=through_centres)


def _by_pictures(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    grey = x.shape[1] == 1
    changed = [np.asarray(change(Image.fromarray(p[..., 0] if grey else p))) for p in pixels]
    result = torch.from_numpy(np.stack(changed)).to(x.device)
    return (result[:, None] if grey else result.permute(0, 3, 1, 2)).to(x.dtype) / 255


# name -> (rule, its parameters at severities 1 to 5)
_RULES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[Any, ...], ...]]] = {
    "brightness": (brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "gaussian_blur": (gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,))),
    "gaussian_noise": (gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "glass_blur": (glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "impulse_noise": (impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "jpeg_compression": (jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "pixelate": (pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "shot_noise": (shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "speckle_noise": (speckle_noise, ((0.06,), (0.10,), (0.12,), (0.16,), (0.20,))),
    "zoom_blur": (zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
}
NAMES = tuple(_RULES)


def parameters(name: str, severity: int) -> tuple[float, ...]:
    """What the rule of a corruption takes at a severity, as CIFAR-10-C has it.

    Raises:
        ValueError, NotImplementedError: as `Corruption`.
    """
    Corruption(name, severity)
    return _RULES[name][1][severity - 1]


@dataclass(frozen=True)
class Corruption:
    """A corruption by name and severity.

    Args:
        name: one of `NAMES`.
        severity: 1 to 5; 5, the strongest, by default.

    Raises:
        ValueError: an unknown name (the message names the near one) or severity.
        NotImplementedError: frost, snow or spatter.
    """

    name: str
    severity: int = 5

    def __post_init__(self) -> None:
        if self.name in ABSENT:
            raise NotImplementedError(f"{self.name} is not available: {ABSENT[self.name]}.")
        if self.name not in _RULES:
            raise unknown_name("corruption", self.name, _RULES)
        if self.severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity is 1 to 5, not {self.severity!r}.")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Corrupted images.

        Args:
            images: (N, 1 or 3, H, W) of at least 8 pixels a side, uint8, or floating point in [0, 1].
            generator: of all random numbers; on the images' device. Unused by rules that draw none.

        Returns:
            Images of the same shape and type, in the same range.

        Raises:
            ValueError: another shape, or values out of range.
            TypeError: another type.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < SMALLEST:
            shape = tuple(images.shape)
            raise ValueError(f"Expected images (N, 1 or 3, H, W) of {SMALLEST} pixels or more, not {shape}.")
        rule, parameters = _RULES[self.name]
        x = _unit(images)
        changed = rule(x, *parameters[self.severity - 1], generator=generator).clamp(0, 1)
        if images.dtype == torch.uint8:
            return (changed * 255).round().to(torch.uint8)
        return changed.to(images.dtype)


def _unit(images: Tensor) -> Tensor:
    """float32 images in [0, 1]."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TypeError(f"Images are uint8 or floating point, not {images.dtype}.")
    # A device would have to be waited for; there, what is out of range is only clipped.
    if images.device.type == "cpu" and images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"Values of images lie in [0, 1], not in [{float(images.min()):.3g}, {float(images.max()):.3g}]."
        )
    return images.float()
