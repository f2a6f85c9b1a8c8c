"""Where the two views of a sample come from; pairs that are known to be bad; series that are made."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ....training.randomness import Draws
from .miner import FAULTY, NOISY
from .views import View

FREQUENCIES = (3.0, 3.7, 4.4, 5.1, 5.8, 6.5)


class Pairs(Protocol):
    """A data set of pairs of views."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> None:
        """Moves what is kept."""

    def views(self, rows: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Two views (B, C, T) of the samples at rows (B,)."""


class AugmentedPairs:
    """Two augmentations of series.

    Args:
        x: (N, C, T).
        weak, strong: of the one view and of the other.
    """

    def __init__(self, x: Tensor, weak: View, strong: View):
        self.x, self.weak, self.strong = x, weak, strong

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> None:
        self.x = self.x.to(device)

    def views(self, rows: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        x = self.x[rows]
        return self.weak(x, draws), self.strong(x, draws)


class ContaminatedPairs:
    """Pairs some of which are made bad.

    Noisy: a tenth of each view, under noise of deviation 2 that both share and that stays, and 0.1 of the
    second view's own. Faulty: the second view's time steps are shuffled, afresh each time.

    Args:
        pairs: fine ones.
        noisy, faulty: shares of the samples.
        seed: of which, and of the noise.

    Attributes:
        kinds: (N,) int8, 0 fine, 1 noisy, 2 faulty.

    Raises:
        ValueError: shares below 0 or above 1 together.
    """

    def __init__(self, pairs: AugmentedPairs, noisy: float, faulty: float, seed: int = 0):
        if noisy < 0 or faulty < 0 or noisy + faulty > 1:
            raise ValueError(f"Shares of bad pairs are {noisy} and {faulty}; their sum must be in [0, 1].")
        generator = torch.Generator().manual_seed(seed)
        self.pairs, count = pairs, len(pairs)
        order, first, second = (
            torch.randperm(count, generator=generator),
            *(round(count * share) for share in (noisy, faulty)),
        )
        self.kinds = torch.zeros(count, dtype=torch.int8)
        self.kinds[order[:first]] = NOISY
        self.kinds[order[first : first + second]] = FAULTY
        self.noise = torch.randn(pairs.x.shape, generator=generator)

    def __len__(self) -> int:
        return len(self.pairs)

    def to(self, device: torch.device) -> None:
        self.pairs.to(device)
        self.kinds, self.noise = self.kinds.to(device), self.noise.to(device)

    def views(self, rows: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        u, v = self.pairs.views(rows, draws)
        kinds, shared = self.kinds[rows][:, None, None], 2 * self.noise[rows]
        fresh, order = draws.normal(tuple(v.shape)), draws.uniform((len(v), v.shape[2])).argsort(1)
        shuffled = v.gather(2, order[:, None].expand_as(v))
        v = torch.where(kinds == NOISY, 0.1 * v + shared + 0.1 * fresh, v)
        return torch.where(kinds == NOISY, 0.1 * u + shared, u), torch.where(kinds == FAULTY, shuffled, v)


def sines(rows: int, seed: int = 0, times: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy sines of six frequencies that lie close together, with random phases and amplitudes.

    Returns:
        (rows, 1, times) float32, and the classes (rows,).
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(len(FREQUENCIES), (rows,), generator=generator)
    a, phase = torch.rand(2, rows, 1, generator=generator)
    t = torch.linspace(0, 1, times)
    angle = 2 * math.pi * (torch.tensor(FREQUENCIES)[y][:, None] * t + phase)
    x = (0.8 + 0.4 * a) * angle.sin() + 0.5 * torch.randn(rows, times, generator=generator)
    return x[:, None], y
