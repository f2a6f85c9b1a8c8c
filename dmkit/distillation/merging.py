"""One student of two, by interpolating their weights (SwiftBrush v2, Dao et al., ECCV 2024): one of them
trained by VSD alone, the other with the CLIP loss.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from .task import check_alike

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def merge_students(one: Network, other: Network, weight: float = 0.5) -> Network:
    """A new network with weights weight · one + (1 - weight) · other.

    Args:
        one, other: two networks of one shape.
        weight: of `one`, in [0, 1].

    Raises:
        ValueError: networks of other shapes, or a weight out of its range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"The weight of the first student is {weight}; it must be in [0, 1].")
    check_alike(one, other, "second student", "first")
    merged = copy.deepcopy(one)
    theirs = other.state_dict()
    for name, value in merged.state_dict().items():
        if value.is_floating_point():
            mixed = theirs[name].to(value).lerp(value, weight)
            value.copy_(mixed)
    return merged
