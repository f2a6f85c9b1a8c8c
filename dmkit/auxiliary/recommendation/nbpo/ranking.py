"""Top-k figures over the full ranking of all items that a user has not clicked in training.

    P@k = hits / k,   Rec@k = hits / |T_u|,   F1@k their harmonic mean
    NDCG@k = Σ_{hits at rank r ≤ k} 1 / log2(r + 1)  over its largest value, with min(|T_u|, k) hits on top

Each is computed for a user and then averaged over the users that have something to find; F1 is the mean of
the users' F1. Equal scores are ranked by item number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .interactions import Interactions


def top_items(scores: Tensor, k: int) -> Tensor:
    """(B, N) -> (B, k), the k best items, the best first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


@torch.no_grad()
def evaluate_ranking(
    scores: Callable[[Tensor], Tensor],
    seen: Sequence[Interactions],
    wanted: Interactions,
    ks: Sequence[int] = (2, 5, 10, 20),
    batch_size: int = 1024,
) -> dict[str, float]:
    """Ranks every item for every user.

    Args:
        scores: users (B,) -> their scores of all items (B, N).
        seen: what is left out of the ranking: training clicks, and for the test set those of validation.
        wanted: what should be found.
        ks: lengths of the list, each at least 1; one beyond N counts the missing places as misses.
        batch_size: users at a time.

    Returns:
        P@k, Rec@k, F1@k and NDCG@k for each k, in [0, 1], and the number of `users`.

    Raises:
        ValueError: no k, a k below 1, nothing to find, or scores of another shape or that are NaN.
    """
    if not ks or min(ks) < 1 or any(k != int(k) for k in ks):
        raise ValueError(f"ks are at least 1 and whole, not {list(ks)}.")
    if not len(wanted):
        raise ValueError("There is nothing to find: the test set is empty.")
    longest = min(max(ks), wanted.num_items)
    counts = wanted.counts()
    gains = 1 / torch.log2(torch.arange(longest, dtype=torch.float64) + 2)
    ideals = torch.cat([torch.zeros(1, dtype=torch.float64), gains.cumsum(0)])
    sums: dict[str, float] = {}
    for users in counts.nonzero().flatten().split(batch_size):
        table = scores(users).detach().cpu().double()
        if table.shape != (len(users), wanted.num_items):
            raise ValueError(
                f"Scores of {len(users)} users and {wanted.num_items} items are not {tuple(table.shape)}."
            )
        if table.isnan().any():
            raise ValueError("A score is NaN.")
        for known in seen:
            table.masked_fill_(known.dense(users), -torch.inf)
        top = top_items(table, longest)
        hits = wanted.contains(users[:, None], top) & (table.gather(1, top) > -torch.inf)
        size = counts[users].double()
        for k in ks:
            found = hits[:, :k].sum(1).double()
            precision, recall = found / k, found / size
            ideal = ideals[counts[users].clamp(max=min(k, longest))]
            figures = {
                "P": precision,
                "Rec": recall,
                "F1": 2 * found / (k + size),  # 2 P R / (P + R)
                "NDCG": (hits[:, :k] * gains[:k]).sum(1) / ideal,
            }
            for name, values in figures.items():
                sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0.0) + float(values.sum())
    users_found = int((counts > 0).sum())
    return {**{name: value / users_found for name, value in sums.items()}, "users": float(users_found)}
