"""Whether the data cover what worst cases ask about.

E[Y | x, do(x_m)] is learned from pairs (Pa(m), x_m). Where x_m almost follows from the parents, most pairs
were never seen, equations extrapolate, and an estimated worst case can be half of the true one.
"""

from __future__ import annotations

import torch

from ....errors import MissingExtraError
from .graphs import Components
from .regressions import Columns


def overlap(
    components: Components, columns: Columns, *, generator: torch.Generator, rows: int = 2000
) -> dict[str, float]:
    """For each mutable variable, how well pairs (Pa(m), x_m) of the data can be told from such with x_m
    permuted.

    Args:
        components: of the graph.
        columns: each (n,).
        generator: for the permutation.
        rows: the most that are used.

    Returns:
        The area under the ROC curve of 15 nearest neighbours, three-fold: 0.5 where x_m is independent of its
        parents, near 1 where it follows from them.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "causal") from error
    found = {}
    for m in components.mutable:
        parents = components.parents(m)
        if not parents:
            found[m] = 0.5
            continue
        some = torch.randperm(len(columns[m]), generator=generator)[:rows]
        upper = torch.stack([_ranks(columns[name][some]) for name in parents], dim=-1)
        own = _ranks(columns[m][some])
        mixed = own[torch.randperm(len(own), generator=generator)]
        pairs = torch.cat([torch.cat([upper, column[:, None]], dim=1) for column in (own, mixed)])
        real = torch.arange(2).repeat_interleave(len(own))
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        neighbours = KNeighborsClassifier(15)
        says = cross_val_predict(neighbours, pairs.numpy(), real.numpy(), cv=folds, method="predict_proba")
        found[m] = float(roc_auc_score(real.numpy(), says[:, 1]))
    return found


def _ranks(column: torch.Tensor) -> torch.Tensor:
    """In [0, 1], so that heavy tails and units do not matter."""
    return column.argsort().argsort().double() / max(len(column) - 1, 1)
