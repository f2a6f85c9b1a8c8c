"""Distances between features, a block of rows at a time, and what is read off them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 24  # 128 MB of float64


def check_features(*sets: Tensor, least: int) -> None:
    """
    Raises:
        ValueError: not (N, D) with N >= `least`, or of different D.
    """
    shapes = [tuple(features.shape) for features in sets]
    if any(len(s) != 2 or s[0] < least for s in shapes) or len({s[1] for s in shapes}) > 1:
        raise ValueError(f"Expected features (N, D) with N >= {least} and one D, not {shapes}.")


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cut a matrix of `rows` x `columns` into blocks of bounded memory."""
    height = max(1, _BLOCK_ELEMENTS // max(1, columns))
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))


def squared_distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """|xᵢ − yⱼ|² in float64, as (rows, block of shape (rows, M)), by |x|² + |y|² − 2 x·y."""
    centre = y.double().mean(0)  # fewer digits cancel
    x, y = x.double() - centre, y.double() - centre
    y_norms = y.square().sum(1)
    for rows in row_blocks(len(x), len(y)):
        norms = x[rows].square().sum(1, keepdim=True) + y_norms
        block = norms - 2 * x[rows] @ y.T
        yield rows, block.masked_fill_(block < 1e-13 * norms, 0)  # what rounding leaves of equal rows


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Squared distance (N,) of each row to its k-th nearest other row."""
    radii = []
    for rows, block in squared_distance_blocks(features, features):
        index = torch.arange(rows.start, rows.stop)
        block[index - rows.start, index] = torch.inf
        radii.append(block.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of the points that lie in a ball."""
    inside = [(block <= radii).any(1) for _, block in squared_distance_blocks(points, centres)]
    return torch.cat(inside).double().mean().item()


def precision_recall(generated: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall: how much of what is made is real, and how much of the real is made.

    T. Kynkäänniemi et al., arXiv:1904.06991, equations (1) and (2): the manifold of a set is the union of the
    balls around its points that reach their k-th nearest other point; precision is the share of generated
    points in the reference's manifold, recall the share of reference points in the generated one. Both depend
    on the sizes of the sets: compare only figures of equal sizes.

    Args:
        generated: features (N, D).
        reference: features (M, D).
        k: the neighbour that a ball reaches; 3 in the paper.

    Raises:
        ValueError: shapes that do not fit, or a set of k points or fewer.
    """
    if k < 1:
        raise ValueError(f"k counts neighbours and is at least 1, not {k}.")
    check_features(generated, reference, least=k + 1)
    precision = _covered(generated, reference, neighbour_radii(reference, k))
    return precision, _covered(reference, generated, neighbour_radii(generated, k))


def pairwise_diversity(features: Tensor) -> float:
    """Mean Euclidean distance between the features (N, D) of two different images of one set.

    Comparable between sets of any size, with the same extractor; that of the reference set is the scale.

    Raises:
        ValueError: fewer than two rows.
    """
    check_features(features, least=2)
    total = sum(block.sqrt().sum().item() for _, block in squared_distance_blocks(features, features))
    return total / (len(features) * (len(features) - 1))
