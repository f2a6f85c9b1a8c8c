"""Sequences of small tasks out of scikit-learn's digits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...data import Rows
from ...data.digits import digit_tensors


@dataclass(frozen=True)
class TaskData:
    """A task of classification.

    Attributes:
        inputs: (N, ...) to train on.
        labels: (N,), int64.
        test_inputs: (M, ...).
        test_labels: (M,), int64.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    def rows(self) -> Rows:
        """What the trainer is given."""
        return Rows(inputs=self.inputs, labels=self.labels)

    def holding_out(self, every: int) -> tuple[TaskData, tuple[Tensor, Tensor]]:
        """The task without one training example in so many, and those: inputs and labels to choose by."""
        held = torch.arange(len(self.labels)) % every == every - 1
        rest = replace(self, inputs=self.inputs[~held], labels=self.labels[~held])
        return rest, (self.inputs[held], self.labels[held])


def permuted_digits(
    tasks: int, examples: int, seed: int, *, alternating: bool = False, root: Path | None = None
) -> list[TaskData]:
    """Digits (N, 64) whose pixels are shuffled in each task's own way; the first task's are not.

    Args:
        tasks: how many, at least 1.
        examples: to train each on; 500 others are tested on.
        seed: of the choice of digits and of the shuffles.
        alternating: only two orders of pixels, in turn, with new examples in each task, so that tasks are
            related; else the same examples in all.
        root: folder of fetched data.

    Raises:
        ValueError: fewer than one task or example, or more examples than there are.
    """
    if tasks < 1 or examples < 1:
        raise ValueError(f"At least one task and one example are needed, not {tasks} and {examples}.")
    images, labels = digit_tensors(seed, root)
    pixels = images.flatten(1)
    needed = examples * (tasks if alternating else 1)
    if needed > len(pixels) - 500:
        raise ValueError(f"{needed} examples to train on are more than the {len(pixels) - 500} there are.")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(64), *(torch.randperm(64, generator=generator) for _ in range(tasks - 1))]
    stream = []
    for t in range(tasks):
        order = orders[t % 2] if alternating else orders[t]
        first = t * examples if alternating else 0
        mine = slice(first, first + examples)
        stream.append(TaskData(pixels[mine][:, order], labels[mine], pixels[-500:][:, order], labels[-500:]))
    return stream


def digit_pairs(seed: int, root: Path | None = None) -> list[TaskData]:
    """Five tasks of two digits each, 0 or 1 to 8 or 9, with labels 0 and 1; 70 % of each to train on.

    Inputs (N, 65) are pixels in [-1, 1] and a constant 1, so that a linear layer needs no bias.
    """
    images, labels = digit_tensors(seed, root)
    pixels = torch.cat([images.flatten(1) * 2 - 1, torch.ones(len(images), 1)], dim=1)
    stream = []
    for t in range(5):
        rows = (labels // 2 == t).nonzero().flatten()
        cut = round(0.7 * len(rows))
        first, rest = rows[:cut], rows[cut:]
        stream.append(TaskData(pixels[first], labels[first] % 2, pixels[rest], labels[rest] % 2))
    return stream
