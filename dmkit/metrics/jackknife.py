"""Standard errors by leaving out one group of samples at a time.

A bootstrap would draw samples twice, which the metrics here take for a narrower distribution (a covariance of
lower rank, a kernel value of an image with itself), so that its replicates are biased. Leaving out is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def groups_of(count: int, groups: int, generator: torch.Generator | None = None) -> Tensor:
    """A random group (0 to groups - 1) for each of `count` samples (N,), of sizes that differ by at most one.

    Raises:
        ValueError: fewer than two groups, or than two samples a group.
    """
    if groups < 2 or count < 2 * groups:
        raise ValueError(
            f"{groups} groups of {count} samples: at least 2, of at least 2 samples, are needed."
        )
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator) % groups


def standard_error(without: Sequence[float]) -> float:
    """Of an estimate, from the estimates without each of the groups (Quenouille, Tukey)."""
    left_out = torch.tensor(without, dtype=torch.float64)
    groups = len(left_out)
    return math.sqrt((groups - 1) / groups * (left_out - left_out.mean()).square().sum().item())
