"""The Gromov-Wasserstein distance of two graphons (2), by conditional gradient, and its gradient (4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ....errors import MissingExtraError
from .graphons import overlap


class Match(NamedTuple):
    """How two graphons fit.

    Attributes:
        distance: d.
        plan: T (r, s), with marginals 1/r and 1/s.
    """

    distance: float
    plan: np.ndarray


def product(C: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The plan that joins everything with everything."""
    return np.full((len(C), len(D)), 1 / len(C) / len(D))


def monotone(C: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The plan that keeps the order; of graphons that are both sorted by degree, often the best one."""
    return overlap(len(C), len(D))


def value(C: np.ndarray, D: np.ndarray, plan: np.ndarray) -> float:
    """The sum in (2) for a plan; rounding cannot make it negative."""
    cross = float(((plan.T @ C @ plan) * D).sum())
    return max(0.0, float((C**2).mean() + (D**2).mean() - 2 * cross))


def gromov_wasserstein(C: np.ndarray, D: np.ndarray, starts: Sequence[np.ndarray] | None = None) -> Match:
    """The best of local minima from some plans; d is never below the true distance.

    Args:
        C: (r, r), symmetric.
        D: (s, s), symmetric.
        starts: plans; by default the product and the monotone one.

    Raises:
        ValueError: matrices that are not square and symmetric.
        MissingExtraError: POT is not installed.
    """
    try:
        import ot
    except ImportError:
        raise MissingExtraError("POT", "graphs") from None
    for matrix in (C, D):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T):
            raise ValueError("Graphons are square and symmetric.")
    p, q = np.full(len(C), 1 / len(C)), np.full(len(D), 1 / len(D))
    plans = []
    for start in [product(C, D), monotone(C, D)] if starts is None else starts:
        plan = ot.gromov.gromov_wasserstein(C, D, p, q, "square_loss", symmetric=True, G0=start)
        plans += [start, plan]
    best = min(plans, key=lambda plan: value(C, D, plan))
    return Match(math.sqrt(value(C, D, best)), best)


def gradient(C: np.ndarray, D: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """(4): ∂d²/∂C with the plan of the minimum, (r, r)."""
    return 2 * C / len(C) ** 2 - 2 * plan @ D @ plan.T
