"""Logistic regression with a regulariser that is not convex, the paper's test problem, on real tables.

    fᵢ(x) = (1/mᵢ) Σⱼ log(1 + exp(-bᵢⱼ aᵢⱼᵀx)) + λ Σₗ xₗ²/(1 + xₗ²)                                (5)
    Lᵢ = λ_max(AᵢᵀAᵢ)/(4 mᵢ) + 2λ                                                                 (6)

since the second derivative of the regulariser is in [-λ/2, 2λ].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import MissingExtraError, unknown_name


@dataclass(frozen=True)
class Logistic:
    """(5) on n workers.

    Attributes:
        features: (n, m, d) float64, the rows of each worker, those with fewer than m filled with zeros.
        labels: (n, m), -1 or 1, and 0 where there is no row.
        regularisation: λ.
    """

    features: Tensor
    labels: Tensor
    regularisation: float = 1e-3

    @classmethod
    def of(
        cls, features: Sequence[Tensor], labels: Sequence[Tensor], regularisation: float = 1e-3
    ) -> Logistic:
        """From the rows (mᵢ, d) and labels (mᵢ,) of each worker.

        Raises:
            ValueError: rows without labels, a worker without rows, or labels other than -1 and 1.
        """
        if len(features) != len(labels) or any(
            len(a) != len(b) or not len(a) for a, b in zip(features, labels, strict=False)
        ):
            raise ValueError("Every worker needs rows (m, d) and as many labels, at least one.")
        if not all(((b == 1) | (b == -1)).all() for b in labels):
            raise ValueError("Labels are -1 or 1.")
        pad = torch.nn.utils.rnn.pad_sequence
        rows = pad([a.double() for a in features], batch_first=True)
        return cls(rows, pad([b.double() for b in labels], batch_first=True), regularisation)

    @cached_property
    def counts(self) -> Tensor:
        """(n,), mᵢ."""
        return (self.labels != 0).sum(1)

    @property
    def start(self) -> Tensor:
        """x⁰ = 0, (d,)."""
        return self.features.new_zeros(self.features.shape[2])

    def value(self, x: Tensor) -> Tensor:
        """f(x), a scalar; never negative."""
        there = self.labels != 0
        losses = F.softplus(-self.labels * (self.features @ x)) * there
        penalty = self.regularisation * (x**2 / (1 + x**2)).sum()
        return (losses.sum(1) / self.counts).mean() + penalty

    def gradients(self, x: Tensor) -> Tensor:
        """(n, d), ∇fᵢ(x)."""
        return self._gradients(x, self.features, self.labels, self.counts)

    def sampled_gradients(self, batch: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """x -> (n, d), ∇fᵢ over `batch` rows of each worker, drawn anew with replacement at every call."""
        n, m, _ = self.features.shape
        counts, workers = self.counts, torch.arange(n)[:, None]

        def gradients(x: Tensor) -> Tensor:
            draws = torch.rand(n, batch, generator=generator, dtype=torch.float64)
            rows = (draws * counts[:, None]).long().clamp(max=m - 1)
            whole = torch.full_like(counts, batch)
            return self._gradients(x, self.features[workers, rows], self.labels[workers, rows], whole)

        return gradients

    def _gradients(self, x: Tensor, features: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        slopes = -labels * torch.sigmoid(-labels * (features @ x)) / counts[:, None]
        penalty = 2 * self.regularisation * x / (1 + x**2) ** 2
        return (slopes[:, None] @ features)[:, 0] + penalty

    def smoothness(self) -> tuple[float, list[float]]:
        """L and all Lᵢ, by (6)."""
        grams = self.features.mT @ self.features / (4 * self.counts[:, None, None])
        largest = torch.linalg.eigvalsh(torch.cat([grams.mean(0, keepdim=True), grams]))[:, -1]
        whole, *each = (largest + 2 * self.regularisation).tolist()
        return whole, each


def tabular(
    name: str = "breast-cancer",
    workers: int = 20,
    *,
    share: float = 1.0,
    seed: int = 0,
    outlier: float = 1.0,
    regularisation: float = 1e-3,
) -> Logistic:
    """A table of scikit-learn, cut into workers that differ: rows are sorted by their length.

    Features have mean 0 and deviation 1.

    Args:
        name: "breast-cancer" (569 rows of 30, malignant or benign), "digits" (1,797 of 64, odd or even) or
            "wine" (178 of 13, the first cultivar or another).
        workers: n.
        share: of the rows that is used, in (0, 1], drawn by `seed`.
        seed: of that draw; nothing else is random.
        outlier: factor of the last worker's features.
        regularisation: λ.

    Raises:
        ValueError: an unknown table, or fewer rows than workers.
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "metrics") from error
    known = {
        "breast-cancer": (datasets.load_breast_cancer, lambda y: y == 1),
        "digits": (datasets.load_digits, lambda y: y % 2 == 1),
        "wine": (datasets.load_wine, lambda y: y == 0),
    }
    if name not in known:
        raise unknown_name("table", name, known)
    load, positive = known[name]
    table, classes = load(return_X_y=True)
    rows, labels = torch.from_numpy(table).double(), torch.from_numpy(positive(classes)).double() * 2 - 1
    if share != 1:
        kept = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        kept = kept[: round(share * len(rows))]
        rows, labels = rows[kept], labels[kept]
    if not 0 < workers <= len(rows):
        raise ValueError(f"{len(rows)} rows cannot be shared by {workers} workers.")
    deviation = rows.std(0, correction=0)
    rows = (rows - rows.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    order = rows.norm(dim=1).argsort(stable=True)
    features = list(rows[order].tensor_split(workers))
    features[-1] = outlier * features[-1]
    return Logistic.of(features, labels[order].tensor_split(workers), regularisation)
