"""One orthonormal pool of input directions a layer, and what is kept of every finished task."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....training.subspaces import InputSpan, energy_rank

REGIMES = (1, 2, 3)


@dataclass
class Learned:
    """What is kept of a task, by layer.

    Attributes:
        columns: the pool's columns that span its inputs, rising.
        regimes: old task -> 2 or 3, as they were at its end; tasks of regime 1 are left out.
        scales: old task -> Q (r, r), for the same tasks.
        gradients: the mean gradient (out, d) that it ended with; only CUBER keeps it.
    """

    columns: dict[str, list[int]] = field(default_factory=dict)
    regimes: dict[str, dict[int, int]] = field(default_factory=dict)
    scales: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


def extended(pool: Tensor, span: InputSpan, share: float) -> tuple[Tensor, list[int]]:
    """A pool with the directions that a new task needs.

    Old and new directions compete: the fewest that hold `share` of the inputs' energy are the task's basis
    (TRGP). That is never fewer new ones than GPM takes, which counts the energy in all old ones first; here
    GPM chooses in the same way, so that what sets the methods apart is only how they move.

    Args:
        pool: (d, r), orthonormal.
        span: the task's inputs.
        share: in (0, 1].

    Returns:
        The pool (d, r + k) and the columns of the task.
    """
    fresh, new = span.outside(pool)
    energies = torch.cat([span.energies(pool), new])
    order = energies.argsort(descending=True, stable=True)
    chosen = order[: energy_rank(energies[order], span.total(), share)]
    added = int((chosen >= pool.shape[1]).sum())  # the strongest, as they come in falling order
    return torch.cat([pool, fresh[:, :added].to(pool)], dim=1), sorted(chosen.tolist())
