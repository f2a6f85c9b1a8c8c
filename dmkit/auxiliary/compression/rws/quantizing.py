"""Tensors in a few levels.

    linear   q(x) = round((x - min) / (max - min) (n - 1)) / (n - 1) (max - min) + min
    log      a sign, and the same of log2 |x| in (n - 1) // 2 levels; one code is an exact zero's

n counts levels, not bits. The error of `linear` is at most (max - min) / (2 (n - 1)). `log` spreads its
levels over all octaves between the smallest and the largest magnitude, so tiny values cost it accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import unknown_name
from .._bits import pack, unpack

SCHEMES = ("linear", "log")
MOST_LEVELS = 2**16


def bits_of(levels: int) -> int:
    """Bits that a code needs."""
    return max(1, math.ceil(math.log2(levels)))


def check(levels: int, scheme: str) -> None:
    """
    Raises:
        ValueError: an unknown scheme, or levels out of range: 2 (3 for `log`) to 65,536.
    """
    if scheme not in SCHEMES:
        raise unknown_name("scheme", scheme, SCHEMES)
    least = 2 if scheme == "linear" else 3
    if not isinstance(levels, int) or not least <= levels <= MOST_LEVELS:
        raise ValueError(
            f"levels of {scheme} is a whole number from {least} to {MOST_LEVELS}, not {levels!r}."
        )


@dataclass(frozen=True)
class Codes:
    """A tensor in `levels` levels.

    Attributes:
        packed: uint8, `bits_of(levels)` bits a value.
        shape: of the tensor.
        levels: n.
        scheme: one of `SCHEMES`.
        low: smallest value; for `log`, of log2 of the magnitudes.
        high: largest one.
    """

    packed: Tensor
    shape: tuple[int, ...]
    levels: int
    scheme: str
    low: float
    high: float

    @property
    def nbytes(self) -> int:
        """Of the codes and their two bounds."""
        return self.packed.nbytes + 8

    def dequantize(self) -> Tensor:
        """float32 of the shape."""
        codes = unpack(self.packed, bits_of(self.levels), math.prod(self.shape)).view(self.shape)
        if self.scheme == "linear":
            return self._level(codes, self.levels).float()
        half = (self.levels - 1) // 2
        magnitude = torch.exp2(self._level((codes - 1) % half, half))
        return torch.where(codes == 0, 0.0, torch.where(codes > half, -magnitude, magnitude)).float()

    def _level(self, code: Tensor, levels: int) -> Tensor:
        return code.double() / max(1, levels - 1) * (self.high - self.low) + self.low


def quantize(x: Tensor, levels: int, scheme: str = "linear") -> Codes:
    """A tensor in `levels` levels. A constant one (`linear`) and zeros (`log`) come back exactly.

    Raises:
        ValueError: as `check`.
    """
    check(levels, scheme)
    x = x.detach().float()
    bits, shape = bits_of(levels), tuple(x.shape)
    if scheme == "linear":
        low, high = float(x.min()), float(x.max())
        return Codes(pack(_codes(x, low, high, levels), bits), shape, levels, scheme, low, high)
    half = (levels - 1) // 2
    magnitude = x.abs().double()
    # The bounds are kept as float32, like those of `linear`.
    exponents = torch.log2(magnitude[magnitude > 0]).float()
    low, high = (float(exponents.min()), float(exponents.max())) if len(exponents) else (0.0, 0.0)
    level = _codes(torch.log2(magnitude).clamp(low, high), low, high, half)
    codes = torch.where(x == 0, 0, 1 + level + half * (x < 0))
    return Codes(pack(codes, bits), shape, levels, scheme, low, high)


def _codes(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    if high == low:
        return torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    return ((x.double() - low) / (high - low) * (levels - 1)).round().long()
