"""How well scores rank a gallery for each query: CMC top-k and mean average precision.

    CMC top-k   share of queries that have a relevant item among the first k of the gallery
    AP          Σₙ (Rₙ - Rₙ₋₁) Pₙ over the thresholds n of a query's scores, recall R and precision P

Items of equal score share a threshold, so that AP does not depend on the order of the gallery (scikit-learn's
definition); for CMC they count in the gallery's order. Everything is compared in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranking_metrics(scores: Tensor, relevant: Tensor, *, topk: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Figures of a whole table of scores.

    Args:
        scores: (Q, G), of each gallery item for each query, larger is better; -inf takes an item out.
        relevant: bool (Q, G). Queries without a relevant item that is not out are passed over.
        topk: the k of CMC.

    Returns:
        `top{k}` for each k, and `map`, in [0, 1]; and the number of `queries` that count.

    Raises:
        ValueError: shapes that do not fit, a score that is NaN, a k below 1, or no query that counts.
    """
    sums = _sums(scores, relevant, topk)
    return _means(sums)


def retrieval_metrics(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    exclude_self: bool = False,
    topk: Sequence[int] = (1, 5),
    batch_size: int = 512,
) -> dict[str, float]:
    """Figures of the dot product of vectors, where an item is relevant if it has the query's label.

    Args:
        query: (Q, d).
        gallery: (G, d).
        query_labels: (Q,).
        gallery_labels: (G,).
        exclude_self: whether gallery item k is query k itself, and therefore taken out; needs Q = G.
        topk: the k of CMC.
        batch_size: queries at a time, so that no more than batch_size x G scores are held.

    Returns:
        As `ranking_metrics`.

    Raises:
        ValueError: as `ranking_metrics`, or vectors of different length.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Queries and gallery are (Q, d) and (G, d), not {tuple(query.shape)} and {tuple(gallery.shape)}."
        )
    if len(query_labels) != len(query) or len(gallery_labels) != len(gallery):
        raise ValueError(
            f"{len(query_labels)} and {len(gallery_labels)} labels for {len(query)} queries and a gallery of "
            f"{len(gallery)}."
        )
    if exclude_self and len(query) != len(gallery):
        raise ValueError(f"exclude_self needs as many queries as items, not {len(query)} and {len(gallery)}.")
    gallery = gallery.double()
    sums: dict[str, float] = {}
    for start in range(0, len(query), batch_size):
        rows = slice(start, min(start + batch_size, len(query)))
        scores = query[rows].double() @ gallery.T
        if exclude_self:
            here = torch.arange(rows.start, rows.stop, device=scores.device)
            scores[here - rows.start, here] = -torch.inf
        relevant = query_labels[rows, None] == gallery_labels[None, :]
        for name, value in _sums(scores, relevant, topk).items():
            sums[name] = sums.get(name, 0.0) + value
    return _means(sums)


def _sums(scores: Tensor, relevant: Tensor, topk: Sequence[int]) -> dict[str, float]:
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(
            f"Scores and relevance are both (Q, G), not {tuple(scores.shape)} and {tuple(relevant.shape)}."
        )
    if any(k < 1 for k in topk):
        raise ValueError(f"top-k needs k of at least 1, not {list(topk)}.")
    if scores.isnan().any():
        raise ValueError("A score is NaN.")
    ordered, order = scores.double().sort(dim=1, descending=True, stable=True)
    hits = relevant.gather(1, order) & (ordered > -torch.inf)
    counts = hits.any(1)
    hits, ordered = hits[counts], ordered[counts]
    if not len(hits):
        return {**{f"top{k}": 0.0 for k in topk}, "map": 0.0, "queries": 0.0}
    # Each item's threshold ends where the next lower score begins.
    places = torch.arange(hits.shape[1], device=hits.device)
    ends = torch.ones_like(hits)
    ends[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    last = torch.where(ends, places, hits.shape[1]).flip(1).cummin(1).values.flip(1)
    found = hits.cumsum(1).gather(1, last).double()
    precision = found / (last + 1)
    average_precision = (precision * hits).sum(1) / hits.sum(1)
    first = hits.int().argmax(1)
    return {
        **{f"top{k}": float((first < k).sum()) for k in topk},
        "map": float(average_precision.sum()),
        "queries": float(len(hits)),
    }


def _means(sums: dict[str, float]) -> dict[str, float]:
    queries = sums.get("queries", 0.0)
    if not queries:
        raise ValueError("No query has a relevant item in the gallery.")
    return {name: value if name == "queries" else value / queries for name, value in sums.items()}
