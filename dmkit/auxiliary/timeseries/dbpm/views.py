"""Augmentations of series (B, C, T). Each takes the random numbers of a step, so that a run that is resumed,
or shared by several processes, draws the same.

    weak, strong = Scaling(0.1), Chain(Permutation(8), Jitter(0.8))
    strong(x, Draws(seed, step, rank=0, world=1))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import unknown_name
from ....training.randomness import Draws

View = Callable[[Tensor, Draws], Tensor]


class Chain:
    """One augmentation after another."""

    def __init__(self, *views: View):
        self.views = views

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        for view in self.views:
            x = view(x, draws)
        return x


@dataclass(frozen=True)
class Jitter:
    """x + σ N(0, 1)."""

    sigma: float

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        return x + self.sigma * draws.normal(tuple(x.shape))


@dataclass(frozen=True)
class Scaling:
    """x times N(1, σ²), one number a "channel"; or a "step" of time, as in the released code of DBPM."""

    sigma: float
    per: str = "channel"

    def __post_init__(self) -> None:
        if self.per not in ("channel", "step"):
            raise unknown_name("per", self.per, ("channel", "step"))

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        rows, channels, times = x.shape
        shape = (rows, channels, 1) if self.per == "channel" else (rows, 1, times)
        return x * (1 + self.sigma * draws.normal(shape))


@dataclass(frozen=True)
class Permutation:
    """Cuts time into 2 to `segments` parts, which may be empty, and shuffles them."""

    segments: int = 8

    def __post_init__(self) -> None:
        if self.segments < 2:
            raise ValueError(f"segments is {self.segments}; it must be at least 2.")

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        rows, _, times = x.shape
        cuts = draws.integers(times, (rows, self.segments - 1))
        used = 1 + draws.integers(self.segments - 1, (rows, 1))  # cuts: one fewer than parts
        cuts = cuts.masked_fill(torch.arange(self.segments - 1, device=x.device) >= used, times)
        part = (cuts[:, :, None] <= torch.arange(times, device=x.device)).sum(1)
        order = draws.uniform((rows, self.segments)).gather(1, part).argsort(dim=1, stable=True)
        return x.gather(2, order[:, None].expand_as(x))


@dataclass(frozen=True)
class MagnitudeWarp:
    """x times a line through `knots` random heights N(1, σ²), the same for all channels."""

    sigma: float
    knots: int = 4

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        heights = 1 + self.sigma * draws.normal((len(x), 1, self.knots))
        return x * F.interpolate(heights, x.shape[2], mode="linear", align_corners=True)


@dataclass(frozen=True)
class TimeShift:
    """Turns time round by 0 to `most` steps either way."""

    most: int

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        times = x.shape[2]
        by = draws.integers(2 * self.most + 1, (len(x), 1)) - self.most
        order = (torch.arange(times, device=x.device) + by) % times
        return x.gather(2, order[:, None].expand_as(x))
