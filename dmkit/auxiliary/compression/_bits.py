"""Small whole numbers, several to a byte."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PLACES = torch.arange(8)


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` numbers of so many bits."""
    return math.ceil(count * bits / 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits, 1 to 16 bits, of any shape -> uint8 (packed_size,), the low bits first."""
    flags = (codes.flatten().long()[:, None] >> torch.arange(bits, device=codes.device)) & 1
    flags = flags.flatten()
    flags = torch.cat([flags, flags.new_zeros(-len(flags) % 8)])
    return (flags.view(-1, 8) << _PLACES.to(codes.device)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: int64 (count,)."""
    flags = (packed.long()[:, None] >> _PLACES.to(packed.device)) & 1
    numbers = flags.flatten()[: count * bits].view(count, bits)
    return (numbers << torch.arange(bits, device=packed.device)).sum(1)
