"""What BT² and its baseline are trained on.

    L = CE(W f, y) + λ₁ (1 - mean ⟨φ'_new, f⟩) + λ₂ CE(K ẑ, y) + λ₃ (1 - mean ⟨φ_old, ẑ⟩)          (4)

with ẑ = z/‖z‖, targets of unit length from the frozen old encoder φ_old and from φ'_new, a new one that was
trained without a thought of the old, and K the means of φ_old over each class of the new training set. The
baseline BCT (Shen et al., CVPR 2020) has the first and third term.

A loss takes a head's output and a batch with int64 `labels` (B,), and the targets `old` (B, d_o) and `new`
(B, d_n) where it needs them, and returns its weighted terms by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import BT2Output
from .scoring import unit_rows


class PseudoClassifier(nn.Module):
    """K: a frozen classifier into the old space, whose rows are the means of a class's old vectors.

    Rows are not normalised. Classes that the old model never knew have rows too, since the means are over the
    new training set.

    Args:
        weight: (classes, d_o).
        known: bool (classes,); logits of the others are -inf.
    """

    def __init__(self, weight: Tensor, known: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("known", known)

    @classmethod
    def from_features(
        cls,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        missing: Literal["error", "skip"] = "error",
    ) -> PseudoClassifier:
        """The means.

        Args:
            features: (N, d_o), old vectors of the new training set; a warning if they are not of unit length.
            labels: int64 (N,) in [0, num_classes).
            num_classes: rows of K.
            missing: what becomes of a class without a sample, whose mean would be NaN: an error, or a logit
                of -inf.

        Raises:
            ValueError: a class without a sample, or a label out of range.
        """
        if missing not in ("error", "skip"):
            raise ValueError(f"missing is 'error' or 'skip', not {missing!r}.")
        if len(features) != len(labels):
            raise ValueError(f"{len(features)} features, but {len(labels)} labels.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"Labels from {int(labels.min())} to {int(labels.max())} for {num_classes} classes."
            )
        counts = torch.bincount(labels, minlength=num_classes)
        if missing == "error" and not counts.all():
            absent = ", ".join(str(k) for k in torch.nonzero(counts == 0).flatten().tolist())
            raise ValueError(
                f"No sample of class {absent}: its row would be NaN. Fewer num_classes, or missing='skip'."
            )
        features = unit_rows(features, "Old vectors")
        sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels.cpu(), features.double().cpu())
        return cls(sums / counts.cpu().clamp(min=1)[:, None], counts > 0)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, d_o) -> logits (B, classes)."""
        logits = vectors.float() @ self.get_buffer("weight").T
        return logits.masked_fill(~self.get_buffer("known"), -torch.inf)


class ClassificationLoss(nn.Module):
    """The first term of (4) alone: a model without a thought of another."""

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, output: BT2Output, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        loss = F.cross_entropy(output.logits, batch["labels"], label_smoothing=self.label_smoothing)
        return {"classification": loss}


class BCTLoss(ClassificationLoss):
    """Classification, and by the old space's pseudo classifier: the first and third term of (4).

    Args:
        pseudo: K.
        influence: λ₂ ≥ 0.
        label_smoothing: of the first term, in [0, 1).
    """

    def __init__(self, pseudo: PseudoClassifier, influence: float = 10.0, label_smoothing: float = 0.0):
        super().__init__(label_smoothing)
        self.pseudo, self.influence = pseudo, _weight("influence", influence)

    def forward(self, output: BT2Output, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        z = F.normalize(output.compatible, dim=1)
        influence = self.influence * F.cross_entropy(self.pseudo(z), batch["labels"])
        return {**super().forward(output, batch), "influence": influence}


class BT2Loss(BCTLoss):
    """All of (4).

    Args:
        pseudo: K.
        match: λ₁ ≥ 0, towards the new teacher.
        influence: λ₂ ≥ 0, of the pseudo classifier.
        old: λ₃ ≥ 0, towards the old vectors.
        label_smoothing: of the first term, in [0, 1).
    """

    def __init__(
        self,
        pseudo: PseudoClassifier,
        match: float = 1.0,
        influence: float = 10.0,
        old: float = 5.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__(pseudo, influence, label_smoothing)
        self.match, self.old = _weight("match", match), _weight("old", old)

    def forward(self, output: BT2Output, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            **super().forward(output, batch),
            "match": self.match * (1 - F.cosine_similarity(batch["new"], output.new).mean()),
            "old": self.old * (1 - F.cosine_similarity(batch["old"], output.compatible).mean()),
        }


def _weight(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} weighs a loss; it cannot be {value}.")
    return value
