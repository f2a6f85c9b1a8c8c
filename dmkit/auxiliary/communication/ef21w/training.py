"""A classifier of digits on workers that see different digits, to try a communication hook on.

    torchrun --nproc_per_node 2 scripts/train_auxiliary.py --config scripts/recipes/ef21w.yaml

Worker k of n holds its own tenth digits: 0 to 4 and 5 to 9 for two. The loss is the mean of theirs. In one
process, or fewer than there are workers, a process serves several, and nothing is compressed between those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from ....data import Rows
from ....data.digits import digit_tensors
from ....metrics.classification import accuracy
from ....training.arguments import TrainingArguments, hint
from ....training.classifying import ClassificationTask
from ....training.networks import MLP
from ....training.trainer import Step, Trainer

CLASSES, TRAIN = 10, 1500


@dataclass
class Arguments:
    """Digits on workers that see different ones."""

    workers: int = field(
        default=2, metadata=hint("Shares of the digits, by class; processes must divide it.")
    )
    hidden: int = field(default=256, metadata=hint("Width of the network's hidden layer; 0 for none."))
    watch_every: int = field(default=50, metadata=hint("Steps between two looks at the whole loss; 0: none."))


class SharedTask(ClassificationTask):
    """Classification where item k is a row of each worker: `inputs` (B, workers, ...), `labels` (B, workers).

    A process takes the columns of its own workers, and never sees those of others.
    """

    def __init__(self, model: torch.nn.Module, inputs: Tensor, labels: Tensor, watch_every: int = 0):
        super().__init__(model)
        self.inputs, self.labels, self.watch_every = inputs.flatten(0, 1), labels.flatten(), watch_every
        self.seen: list[tuple[int, float]] = []

    def prepare(self, device: torch.device) -> None:
        self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        if self.watch_every and step.number % self.watch_every == 0:
            self.seen.append((step.number, self.whole_loss()))
        mine = {name: column[:, step.rank :: step.world].flatten(0, 1) for name, column in batch.items()}
        return super().training_step(mine, step)

    @torch.no_grad()
    def whole_loss(self) -> float:
        """f: over all rows of all workers, with the weights as they are, the same in all processes."""
        model = self.modules["model"]
        model = getattr(model, "module", model)  # DDP's forward would get ready for a backward pass
        return float(F.cross_entropy(model(self.inputs).float(), self.labels))


def share(images: Tensor, labels: Tensor, workers: int) -> tuple[Tensor, Tensor]:
    """Cuts digits, sorted by class, into equal shares: (N, ...) -> (N // workers, workers, ...)."""
    rows = len(labels) // workers
    order = labels.argsort(stable=True)[: rows * workers].view(workers, rows).T
    return images[order], labels[order]


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains once.

    Returns:
        `loss` over all training rows, `accuracy` on the test rows, `curve` of [step, loss], and what
        `Communication.figures` counts in the first process.

    Raises:
        ValueError: workers that cannot be shared equally by the processes or that have no rows.
    """
    processes, workers = PartialState().num_processes, arguments.workers
    if not 0 < workers <= TRAIN or workers % processes:
        raise ValueError(f"{workers} workers cannot be shared equally by {processes} processes.")
    images, labels = digit_tensors(training.seed)
    inputs, targets = share(images[:TRAIN], labels[:TRAIN], workers)
    torch.manual_seed(training.seed)
    widths = (64, arguments.hidden, CLASSES) if arguments.hidden else (64, CLASSES)
    task = SharedTask(MLP(widths), inputs, targets, arguments.watch_every)
    trainer = Trainer(task, Rows(inputs=inputs, labels=targets), training)
    trainer.train()
    device = trainer.accelerator.device
    model = trainer.unwrapped()["model"]
    return {
        "loss": task.whole_loss(),
        "accuracy": accuracy(model, images[TRAIN:].to(device), labels[TRAIN:].to(device)),
        "curve": [list(point) for point in task.seen],
        **trainer.communication.figures(),
    }
