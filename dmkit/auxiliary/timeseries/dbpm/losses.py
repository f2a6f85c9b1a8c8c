"""Contrastive losses with one number a pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(u: Tensor, v: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent of SimCLR (Chen et al. 2020, arXiv:2002.05709), not reduced.

    Each of the 2B rows must tell its partner from the 2B - 2 others; a pair has the mean of both ways. The
    level depends on B, ln(2B - 1) where all rows are alike: batches of an epoch should be equally large.

    Args:
        u, v: (B, D), of the same samples in the same order, B of 2 or more; normalised here.
        temperature: above 0.

    Returns:
        (B,) float32.

    Raises:
        ValueError: a batch of 1, unequal shapes, a temperature out of range.
    """
    if u.shape != v.shape or u.ndim != 2 or len(u) < 2:
        raise ValueError(
            f"Two views of two samples or more are needed, (B, D), not {tuple(u.shape)} and {tuple(v.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive.")
    z = F.normalize(torch.cat([u, v]).float())
    scores = (z @ z.t() / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(u))
    return F.cross_entropy(scores, partner, reduction="none").view(2, -1).mean(0)
