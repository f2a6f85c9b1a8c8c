"""Classification as a task: the mean cross-entropy of a network's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .randomness import Draws
from .trainer import Step, Task


class ClassificationTask(Task):
    """Trains `model(inputs) -> logits (B, classes)` on batches of `inputs` and int64 `labels`.

    Args:
        model: the network, with `save_pretrained` and `from_pretrained`.
        augment: inputs, draws -> inputs, anew in every step; nothing by default.
        label_smoothing: in [0, 1).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        augment: Callable[[Tensor, Draws], Tensor] | None = None,
        label_smoothing: float = 0.0,
    ):
        self.modules = {"model": model}
        self.augment, self.label_smoothing = augment, label_smoothing

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        inputs = batch["inputs"]
        if self.augment is not None:
            inputs = self.augment(inputs, step.draws)
        logits = self.modules["model"](inputs)
        loss = F.cross_entropy(logits.float(), batch["labels"], label_smoothing=self.label_smoothing)
        return {"loss": loss}
