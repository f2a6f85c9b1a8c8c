"""f-divergences and their conjugates over non-negative ratios.

    f*(y) = max_{x ≥ 0} x y - f(x),    maximiser ω(y) = max(0, f'⁻¹(y)),    f*'(y) = ω(y)

    pearson_chi2   f = (x-1)²      ω = max(0, y/2 + 1)    f* = y + y²/4 for y ≥ -2, else -1
    kl             f = x ln x      ω = e^(y-1)            f* = e^(y-1)

The exponential goes on as a straight line from `KL_END`, so that nothing overflows and no slope is lost. The
authors' code calls the second one "Reverse KL".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ....errors import unknown_name

KL_END = 30.0


@dataclass(frozen=True)
class Divergence:
    """A divergence by what a training needs of it.

    Attributes:
        name: in `DIVERGENCES`.
        conjugate: f*, of any shape.
        ratio: ω, the derivative of f*, at least 0.
    """

    name: str
    conjugate: Callable[[Tensor], Tensor]
    ratio: Callable[[Tensor], Tensor]


def _pearson_conjugate(y: Tensor) -> Tensor:
    y = y.clamp(min=-2)  # flat below, where ω = 0
    return y + y.square() / 4


def _pearson_ratio(y: Tensor) -> Tensor:
    return F.relu(y / 2 + 1)


def _kl_conjugate(y: Tensor) -> Tensor:
    return (y.clamp(max=KL_END) - 1).exp() * (1 + F.relu(y - KL_END))


def _kl_ratio(y: Tensor) -> Tensor:
    return (y.clamp(max=KL_END) - 1).exp()


DIVERGENCES = {
    "pearson_chi2": Divergence("pearson_chi2", _pearson_conjugate, _pearson_ratio),
    "kl": Divergence("kl", _kl_conjugate, _kl_ratio),
}


def f_conjugate(name: str) -> Divergence:
    """A divergence by its name.

    Raises:
        ValueError: another name than "pearson_chi2" or "kl".
    """
    if name not in DIVERGENCES:
        raise unknown_name("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]
