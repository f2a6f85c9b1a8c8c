"""Comparing vectors of different models by their first entries, and what it is worth.

The query's length does not change a ranking, and vectors of one gallery have one length: 1 for old vectors,
sqrt(1 + C²) for new ones. So dot products do, within one gallery.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....metrics.ranking import retrieval_metrics


def common_prefix(query: Tensor, gallery: Tensor, lengths: Collection[int] | None = None) -> int:
    """How many entries both have.

    Args:
        query: (Q, a).
        gallery: (G, b).
        lengths: `BasisTransformationHead.lengths` of the model with the longer vectors, to be sure that it
            was trained for the shorter. Not checked if not given: any two lengths are compared then.

    Raises:
        ValueError: vectors that were not made to be compared.
    """
    if query.ndim != 2 or gallery.ndim != 2:
        raise ValueError(
            f"Vectors are rows of (N, d), not of {tuple(query.shape)} and {tuple(gallery.shape)}."
        )
    shared = min(query.shape[1], gallery.shape[1])
    if lengths is not None and (strange := {query.shape[1], gallery.shape[1]} - set(lengths)):
        known = ", ".join(map(str, sorted(lengths)))
        raise ValueError(f"No model of this chain has vectors of length {min(strange)}; they have {known}.")
    return shared


def compatible_scores(query: Tensor, gallery: Tensor, lengths: Collection[int] | None = None) -> Tensor:
    """Dot products over the first entries that both have.

    Args:
        query: (Q, a), of one model.
        gallery: (G, b), of one model.
        lengths: see `common_prefix`.

    Returns:
        (Q, G). Neither normalise nor rotate nor quantise whole vectors before: their first entries would not
        be comparable any more.
    """
    shared = common_prefix(query, gallery, lengths)
    return query[:, :shared] @ gallery[:, :shared].T


def mixed_scores(
    query: Tensor, galleries: Sequence[Tensor], lengths: Collection[int] | None = None
) -> Tensor:
    """Scores of a gallery that is only partly computed anew, on one scale.

    Plain products of a new query are at most ‖z‖ with an old item and up to 1 + C² with a new one, so new
    items would always come first. Here all are cosines over the entries that all have.

    Args:
        query: (Q, a).
        galleries: (G_i, b_i), one for each model.
        lengths: see `common_prefix`.

    Returns:
        (Q, Σ G_i), gallery after gallery.
    """
    shared = min(common_prefix(query, gallery, lengths) for gallery in galleries)
    directions = F.normalize(query[:, :shared], dim=1)
    return torch.cat([directions @ F.normalize(g[:, :shared], dim=1).T for g in galleries], dim=1)


def unit_rows(vectors: Tensor, what: str = "vectors", tolerance: float = 1e-3) -> Tensor:
    """(N, d) with rows of unit length; a warning if they were not.

    Raises:
        ValueError: rows that are not finite, or zero.
    """
    lengths = vectors.float().norm(dim=1)
    if not lengths.isfinite().all() or not lengths.all():
        raise ValueError(f"{what}: some are zero or not finite.")
    if (lengths - 1).abs().max() <= tolerance:
        return vectors
    warnings.warn(f"{what} are not of unit length; they are normalised.", stacklevel=2)
    return F.normalize(vectors.float(), dim=1)


def pad_to(vectors: Tensor, dim: int) -> Tensor:
    """(N, d) with zeros behind, to length dim: for a store that wants all vectors alike. No product changes.

    Raises:
        ValueError: vectors that are longer.
    """
    if vectors.shape[1] > dim:
        raise ValueError(f"Vectors of {vectors.shape[1]} entries cannot be padded to {dim}.")
    return F.pad(vectors, (0, dim - vectors.shape[1]))


def compatibility(
    old: Tensor, new: Tensor, labels: Tensor, *, topk: Sequence[int] = (1, 5)
) -> dict[str, dict[str, float]]:
    """Retrieval by class with each item as a query against all others, query model / gallery model.

    Args:
        old: (N, a), the old model's vectors.
        new: (N, b), the new model's of the same items.
        labels: (N,).
        topk: the k of CMC.

    Returns:
        For `old/old`, `new/old` (new queries in the gallery as it is) and `new/new` what `retrieval_metrics`
        returns.
    """
    shared = common_prefix(new, old)
    pairs = {
        "old/old": (old, old),
        "new/old": (new[:, :shared], old[:, :shared]),
        "new/new": (new, new),
    }
    return {
        name: retrieval_metrics(query, gallery, labels, labels, exclude_self=True, topk=topk)
        for name, (query, gallery) in pairs.items()
    }
