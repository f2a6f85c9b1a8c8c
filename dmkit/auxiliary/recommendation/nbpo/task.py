"""Training tables of scores and flips on clicks and sampled items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ....training.trainer import Step, Task
from .interactions import Interactions
from .losses import PairLoss
from .models import FlipModel, MatrixFactorization
from .recommender import Recommender
from .samplers import Sampler


class Clicks(Dataset):
    """Interactions as a data set of `users` and `items`. A batch is cut out whole; `as_it_is` collates it."""

    def __init__(self, interactions: Interactions):
        self.interactions = interactions

    def __len__(self) -> int:
        return len(self.interactions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"users": self.interactions.users[index], "items": self.interactions.items[index]}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices)
        return {"users": self.interactions.users[rows], "items": self.interactions.items[rows]}


def as_it_is(batch: Any) -> Any:
    """The collation of `Clicks`."""
    return batch


class RecommendationTask(Task):
    """Trains scores, and flips where they are learnt.

    A summed loss is the sum over all processes, so that many train as one does; over micro-batches of
    accumulated gradients the trainer takes the mean of the sums.

    Args:
        scores: R.
        loss: one of `losses`.
        sampler: one of `samplers`; it draws from what is not in `seen`.
        seen: the clicks to train on.
        flip: g, or a constant γ, or None for losses without flips.
        flip_decay: weight decay of the flips' factors, λ_φ; that of the scores is the trainer's own.
        user_ids: for the saved recommender.
        item_ids: likewise.
    """

    def __init__(
        self,
        scores: MatrixFactorization,
        loss: PairLoss,
        sampler: Sampler,
        seen: Interactions,
        *,
        flip: FlipModel | float | None = None,
        flip_decay: float = 1.0,
        user_ids: Sequence[Any] | None = None,
        item_ids: Sequence[Any] | None = None,
    ):
        self.modules = {"scores": scores}
        self._flips: set[int] = set()
        if isinstance(flip, FlipModel):
            self.modules["flip"] = flip
            self._flips = {id(p) for p in flip.parameters()}
        self.constant = flip if isinstance(flip, float) else None
        self._scores = scores  # what the sampler looks into, whatever the trainer wraps it in
        self.loss, self.sampler, self.seen, self.flip_decay = loss, sampler, seen, flip_decay
        self._names = (user_ids, item_ids)

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": [p for p in parameters if id(p) not in self._flips]}]
        if self._flips:
            flips = [p for p in parameters if id(p) in self._flips]
            groups.append({"params": flips, "weight_decay": self.flip_decay})
        return groups

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        users = batch["users"]
        negatives = self.sampler(users, self._scores, step.draws)
        items = torch.cat([batch["items"][:, None], negatives], dim=1)
        R = self.modules["scores"](users, items)
        g: Tensor | None = None
        if "flip" in self.modules:
            g = self.modules["flip"](users, items)
        elif self.constant is not None:
            g = torch.full_like(R, self.constant).logit()
        flips = () if g is None else (g[:, 0], g[:, 1:])
        loss = self.loss(R[:, 0], R[:, 1:], *flips)
        return {"loss": loss * step.world if self.loss.reduction == "sum" else loss}

    def settings(self) -> dict[str, Any]:
        return {
            "loss": [type(self.loss).__name__, getattr(self.loss, "objective", None), self.loss.reduction],
            "sampler": type(self.sampler).__name__,
            "flip": self.constant if self.constant is not None else self.flip_decay,
        }

    def recommender(self, modules: Mapping[str, nn.Module]) -> Recommender:
        """What was trained, from unwrapped modules."""
        flip: Any = modules.get("flip", self.constant)
        return Recommender(modules["scores"], flip, self.seen, *self._names)  # type: ignore[arg-type]

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        self.recommender(modules).write(folder)
