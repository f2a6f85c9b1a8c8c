"""Contractive compressors of vectors: E‖C(v) - v‖² ≤ (1 - α) ‖v‖² with α in (0, 1].

    TopK     the k largest entries by size, α = k/d
    RandK    k random entries, not scaled up, α = k/d in expectation
    Grid     rounding to multiples of a step; no α, since small vectors vanish
    Natural  rounding to a power of two at random, α = 7/8 (Horváth et al. 2019, arXiv:1905.10988)

The first two are positively homogeneous, C(cv) = c C(v) for c > 0, and send few numbers with their places;
these serve as a communication hook. The others are for study: they are where weights of workers matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOAT_BITS, INDEX_BITS = 32, 32


class Compressor:
    """Turns vectors into what is left of them after the wire.

    Attributes:
        homogeneous: whether C(cv) = c C(v) for all c > 0.
    """

    homogeneous = False

    def alpha(self, d: int) -> float:
        """α in (0, 1] for vectors of d numbers.

        Raises:
            ValueError: a compressor that is not contractive.
        """
        raise ValueError(f"{type(self).__name__} is not contractive, so theory has no step size for it.")

    def bits(self, d: int) -> int:
        """What one vector of d numbers costs on the wire."""
        raise NotImplementedError

    def __call__(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., d) -> (..., d): each row compressed, as it arrives."""
        raise NotImplementedError


class Sparse(Compressor):
    """Sends k of d numbers as they are.

    Args:
        ratio: k/d in (0, 1]; k is rounded up, so that something is always sent.
        k: the number itself, instead of a ratio.

    Raises:
        ValueError: neither or both, or out of range.
    """

    homogeneous = True

    def __init__(self, ratio: float | None = None, *, k: int | None = None):
        if (ratio is None) == (k is None):
            raise ValueError("Either ratio or k.")
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"The ratio of entries that are sent is in (0, 1], not {ratio}.")
        if k is not None and k < 1:
            raise ValueError(f"k is at least 1, not {k}.")
        self.ratio, self._k = ratio, k

    def k(self, d: int) -> int:
        """How many of d numbers are sent."""
        if self._k is not None:
            return min(self._k, d)
        assert self.ratio is not None
        return max(1, math.ceil(self.ratio * d - 1e-9))  # 0.07 * 100 is 7.000000000000001

    def alpha(self, d: int) -> float:
        return self.k(d) / d

    def bits(self, d: int) -> int:
        k = self.k(d)
        return min(k * (FLOAT_BITS + INDEX_BITS), d * FLOAT_BITS)

    def select(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., d) -> int64 (..., k), the places that are sent."""
        raise NotImplementedError

    def __call__(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        places = self.select(vectors, generator)
        return torch.zeros_like(vectors).scatter_(-1, places, vectors.gather(-1, places))


class TopK(Sparse):
    """The k entries of largest size."""

    def select(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return vectors.abs().topk(self.k(vectors.shape[-1]), dim=-1).indices


class RandK(Sparse):
    """k entries at random, without the factor d/k that would make them unbiased but not contractive."""

    def select(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(vectors.shape, generator=generator, device=vectors.device)
        return noise.topk(self.k(vectors.shape[-1]), dim=-1).indices


class Natural(Compressor):
    """Rounds each entry to a neighbouring power of two, at random and without bias: a sign and an exponent.

    For 1 ≤ v ≤ 2 the variance is (v - 1)(2 - v), at most v²/8.
    """

    def alpha(self, d: int) -> float:
        return 7 / 8

    def bits(self, d: int) -> int:
        return 9 * d

    def __call__(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mantissa, exponent = torch.frexp(vectors)  # mantissa in [1/2, 1), 0 for 0
        size = mantissa.abs()
        up = torch.rand(vectors.shape, generator=generator, device=vectors.device) < 2 * size - 1
        rounded = torch.where(up, 1.0, 0.5).to(vectors) * vectors.sign()
        return torch.ldexp(rounded, exponent)


class Grid(Compressor):
    """Rounds each entry to the nearest multiple of a step.

    Raises:
        ValueError: a step that is not positive.
    """

    def __init__(self, step: float):
        if not step > 0:
            raise ValueError(f"The grid's step must be positive, not {step}.")
        self.step = step

    def bits(self, d: int) -> int:
        return FLOAT_BITS * d

    def __call__(self, vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (vectors / self.step).round() * self.step
