"""Kernel distance: the squared maximum mean discrepancy of two sets of features.

M. Bińkowski et al., Demystifying MMD GANs, arXiv:1801.01401, with k(x, y) = (x·y / D + 1)³ and the unbiased

    MMD² = Σ_{i≠j} k(xᵢ, xⱼ) / n(n−1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m−1) − 2 Σ_{ij} k(xᵢ, yⱼ) / nm            (1)

The paper averages (1) over random subsets, so as to need kernel matrices of the subsets' size only. The mean
over subsets is an incomplete form of (1) over the whole sets: the same expectation, with the noise of the
drawing added; and the spread of overlapping subsets says nothing of how far another sample would be. Here (1)
runs over the whole sets, in blocks. The sums of the kernel by group are kept, from which the same estimate
without each group, and so a standard error for the sampling of both sets, costs nothing more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .distances import check_features, row_blocks
from .jackknife import groups_of, standard_error


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    stderr: float


def _group_sums(x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor) -> Tensor:
    """Σ k(xᵢ, yⱼ) over i in group a, j in group b: (groups, groups), float64."""
    sums = x.new_zeros(x_groups.shape[1], y_groups.shape[1], dtype=torch.float64)
    for rows in row_blocks(len(x), len(y)):
        kernel = ((x[rows] @ y.T).double() / x.shape[1] + 1) ** 3
        sums += x_groups[rows].T @ (kernel @ y_groups)
    return sums


def _without_each(sums: Tensor) -> Tensor:
    """The total of a (groups, groups) table, and without row a and column a for each a: (groups + 1,)."""
    left = sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()
    return torch.cat([sums.sum().view(1), left])


def kid(
    generated: Tensor, reference: Tensor, *, groups: int = 20, generator: torch.Generator | None = None
) -> Estimate:
    """Equation (1) over the whole sets, and its jackknife standard error.

    Args:
        generated: features (N, D); float64 features are compared in float64.
        reference: features (M, D).
        groups: groups of the jackknife (fewer where a set has under 40 samples).
        generator: draws the groups; a fixed seed by default. It does not change the value.

    Returns:
        The value (unbiased, so it may fall below 0) and its standard error. Where the two sets are alike,
        (1) has no linear part for the jackknife to see, and the error comes out too large by up to √2.

    Raises:
        ValueError: shapes that do not fit, or fewer than 4 samples in a set.
    """
    check_features(generated, reference, least=4)
    groups = min(groups, len(generated) // 2, len(reference) // 2)
    x, y = generated, reference
    x_groups, y_groups = (
        F.one_hot(groups_of(len(features), groups, generator), groups).double() for features in (x, y)
    )
    within = []
    for features, membership in ((x, x_groups), (y, y_groups)):
        sums = _group_sums(features, features, membership, membership)
        itself = (features.double().square().sum(1) / features.shape[1] + 1) ** 3
        within.append(_without_each(sums - torch.diag(itself @ membership)))
    across = _without_each(_group_sums(x, y, x_groups, y_groups))
    n, m = (
        len(features) - torch.cat([torch.zeros(1), membership.sum(0)]).double()
        for features, membership in ((x, x_groups), (y, y_groups))
    )
    mmd = within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * across / (n * m)  # (1)
    return Estimate(mmd[0].item(), standard_error(mmd[1:].tolist()))
