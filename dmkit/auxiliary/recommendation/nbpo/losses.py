"""Losses of scores of clicked items i and of sampled items j without a click.

With γ = σ(g), and sg(·) for what is held constant,

    BPO     -[ln σ(R_i) + ln σ(-R_j)]                                       every unclicked item is a negative
    BPR     -ln σ(R_i - R_j)

    NBPO-o  -[ln σ(-g_i) + ln σ(R_i) + ln D_j],  D_j = σ(-R_j) + σ(g_j) σ(R_j)            the exact likelihood
    NBPO-s  -[σ(-g_i) σ(R_i) + D_j]                          the surrogate likelihood: probabilities are added
    NBPO    -[sg(σ(-g_i)) ln σ(R_i) + sg(σ(R_i)) ln σ(-g_i)
              + ln σ(-R_j) + sg(σ(g_j)) ln σ(R_j) + sg(σ(R_j)) ln σ(g_j)]             the surrogate's gradient

The last is the gradient of the surrogate likelihood with σ'(x) = σ(x) σ(-x) replaced by (ln σ)'(x) = σ(-x),
which does not vanish where a score is confident: an unclicked item is a negative, and a positive of weight γ.
Expectation maximisation would weigh the two by the posterior of a like; its gradient is that of NBPO-o.

The terms of i count once for each j, as in the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import unknown_name

OBJECTIVES = ("surrogate", "likelihood", "surrogate_likelihood")
REDUCTIONS = ("sum", "mean")


class PairLoss(nn.Module):
    """Base of the losses; a subclass writes `terms`.

    Args:
        reduction: "sum" over all pairs of a clicked and a sampled item, or their "mean". The paper's settings
            are for "sum", which is the default.

    Raises:
        ValueError: another reduction.
    """

    def __init__(self, reduction: str = "sum"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise unknown_name("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def terms(self, pos: Tensor, neg: Tensor, pos_flip: Tensor | None, neg_flip: Tensor | None) -> Tensor:
        """(B, 1), (B, n) and their flip logits, if there are any -> the loss of each pair (B, n)."""
        raise NotImplementedError

    def forward(
        self,
        pos_scores: Tensor,
        neg_scores: Tensor,
        pos_flip_logits: Tensor | None = None,
        neg_flip_logits: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            pos_scores: (B,), R of clicked items.
            neg_scores: (B, n), R of n sampled items for each of them.
            pos_flip_logits: (B,), g of the clicked items.
            neg_flip_logits: (B, n), g of the sampled items.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if pos_scores.ndim != 1 or neg_scores.ndim != 2 or len(pos_scores) != len(neg_scores):
            raise ValueError(
                f"Scores are (B,) of clicked and (B, n) of sampled items, not {tuple(pos_scores.shape)} and "
                f"{tuple(neg_scores.shape)}."
            )
        for scores, flips in ((pos_scores, pos_flip_logits), (neg_scores, neg_flip_logits)):
            if flips is not None and flips.shape != scores.shape:
                raise ValueError(
                    f"Flip logits of shape {tuple(flips.shape)} for scores of {tuple(scores.shape)}."
                )
        pos_flip = None if pos_flip_logits is None else pos_flip_logits[:, None]
        pairs = self.terms(pos_scores[:, None], neg_scores, pos_flip, neg_flip_logits)
        return pairs.sum() if self.reduction == "sum" else pairs.mean()


class BPOLoss(PairLoss):
    """Logistic loss of each item by itself; flip logits are not looked at."""

    def terms(self, pos: Tensor, neg: Tensor, pos_flip: Tensor | None, neg_flip: Tensor | None) -> Tensor:
        return -(F.logsigmoid(pos) + F.logsigmoid(-neg))


class BPRLoss(PairLoss):
    """Logistic loss of the difference; flip logits are not looked at."""

    def terms(self, pos: Tensor, neg: Tensor, pos_flip: Tensor | None, neg_flip: Tensor | None) -> Tensor:
        return -F.logsigmoid(pos - neg)


def log_not_clicked(scores: Tensor, flip_logits: Tensor) -> Tensor:
    """ln D = ln[σ(-R) + σ(g) σ(R)], finite for all R and g, as are its gradients."""
    return torch.logaddexp(F.logsigmoid(-scores), F.logsigmoid(scores) + F.logsigmoid(flip_logits))


class NBPOLoss(PairLoss):
    """Noisy-label robust loss.

    Args:
        objective: "surrogate" (NBPO), "likelihood" (NBPO-o) or "surrogate_likelihood" (NBPO-s). The value of
            "surrogate" is not what its gradient descends: it may rise while training goes well.
        reduction: as for `PairLoss`.

    Raises:
        ValueError: another objective or reduction; no flip logits.
    """

    def __init__(self, objective: str = "surrogate", reduction: str = "sum"):
        super().__init__(reduction)
        if objective not in OBJECTIVES:
            raise unknown_name("objective", objective, OBJECTIVES)
        self.objective = objective

    def terms(self, pos: Tensor, neg: Tensor, pos_flip: Tensor | None, neg_flip: Tensor | None) -> Tensor:
        if pos_flip is None or neg_flip is None:
            raise ValueError("NBPOLoss needs the flip logits of clicked and of sampled items.")
        if self.objective == "likelihood":
            clicked = F.logsigmoid(-pos_flip) + F.logsigmoid(pos)
            return -(clicked + log_not_clicked(neg, neg_flip))
        if self.objective == "surrogate_likelihood":
            return -((-pos_flip).sigmoid() * pos.sigmoid() + log_not_clicked(neg, neg_flip).exp())
        with torch.no_grad():
            kept, liked = (-pos_flip).sigmoid(), pos.sigmoid()
            flipped, neg_liked = neg_flip.sigmoid(), neg.sigmoid()
        clicked = kept * F.logsigmoid(pos) + liked * F.logsigmoid(-pos_flip)
        unclicked = F.logsigmoid(-neg) + flipped * F.logsigmoid(neg) + neg_liked * F.logsigmoid(neg_flip)
        return -(clicked + unclicked)
