"""PCGrad (Yu et al. 2020, arXiv 2001.06782): a gradient that conflicts with another loses that component.

    p_i = g_i;  for j in random order, j ≠ i:  if <p_i, g_j> < 0:  p_i -= <p_i, g_j> / |g_j|² g_j
    gradient = Σ_i p_i                                               (algorithm 1; g_j are the original ones)

Each p_i stays a combination Σ_j C_ij g_j, and <p_i, g_j> = (C M)_ij, so that it all happens in M.
"""

from __future__ import annotations

import numpy as np
import torch

from .gram import GramRule


def pcgrad_weights(inner: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Weights w (k,) with Σ_i p_i = Σ_j w_j g_j.

    Args:
        inner: (k, k), M.
        generator: of the orders of projection.
    """
    k = len(inner)
    coefficients = np.eye(k)
    for i in range(k):
        for j in torch.randperm(k, generator=generator).tolist():
            if j != i and (overlap := coefficients[i] @ inner[:, j]) < 0:
                coefficients[i, j] -= overlap / inner[j, j]
    return coefficients.sum(0)


class PCGrad(GramRule):
    """Projects away conflicts between losses, every step by default.

    Args:
        update_every: as for `GramRule`.
    """

    def weigh(self, inner: np.ndarray, generator: torch.Generator) -> np.ndarray:
        return pcgrad_weights(inner, generator)
