"""NashMTL (Navon et al. 2022, arXiv 2202.01017): the Nash bargaining solution between the losses.

    α > 0 with M α = 1 / α  (elementwise; section 3.2),     gradient = (1/k) Σ_i α_i g_i

For M ≽ 0 this is the stationarity of the strictly convex, self-concordant f(α) = ½ αᵀ M α - Σ ln α_i, so the
damped Newton method finds it, where the authors solve a sequence of convex programmes. αᵀ M α = k there:
the gradient has norm 1 / √k whatever the losses' scale.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from .gram import GramRule


def nash_weights(inner: np.ndarray, max_iterations: int = 100) -> np.ndarray | None:
    """α (k,) with M α = 1 / α, to a residual max |α (M α) - 1| of at most 1e-6.

    Args:
        inner: (k, k), M, symmetric and positive semi-definite.
        max_iterations: of Newton's method; 5 to 12 are usual.

    Returns:
        None where there is no solution: some non-negative combination of the gradients is zero (the weights
        are Pareto stationary), or a gradient is zero.
    """
    diagonal = np.diag(inner)
    if not (diagonal > 0).all():
        return None
    # In units of each gradient's own length: β = α |g| solves the same equation for the cosines.
    lengths = np.sqrt(diagonal)
    cosines = inner / np.outer(lengths, lengths)
    beta = np.ones(len(inner))
    for _ in range(max_iterations):
        slope = cosines @ beta - 1 / beta
        try:
            step = -np.linalg.solve(cosines + np.diag(beta**-2), slope)
        except np.linalg.LinAlgError:  # β has run off to infinity
            return None
        decrement = np.sqrt(max(-slope @ step, 0.0))
        if not np.isfinite(decrement):
            return None
        if decrement < 1e-10:
            break
        beta = beta + (step if decrement < 0.25 else step / (1 + decrement))
    if not np.abs(beta * (cosines @ beta) - 1).max() <= 1e-6:
        return None
    return beta / lengths


class NashMTL(GramRule):
    """Weighs the losses by the Nash bargaining solution.

    The gradient has norm 1/√k where the weights are fresh and grows with the losses' gradients in between:
    keep `max_grad_norm` at 1.

    Args:
        update_every: as for `GramRule`; 25 in ANT's code, 1 in NashMTL's.
    """

    def __init__(self, update_every: int = 25):
        super().__init__(update_every)
        self.stateful = True  # where there is no solution the last one stays
        self._warned = False

    def weigh(self, inner: np.ndarray, generator: torch.Generator) -> np.ndarray:
        k = len(inner)
        if (alpha := nash_weights(inner)) is not None:
            return alpha / k
        if not self._warned:
            warnings.warn("The gradients have no Nash solution; the last weights stay.", stacklevel=2)
            self._warned = True
        return np.full(k, 1 / k) if self.held is None else self.held
