"""How well a network classifies, and what it forgets over a sequence of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = 512) -> Tensor:
    """A network's outputs for (N, ...) inputs, in eval mode where it is a module; N rows on the CPU."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        return torch.cat([model(part).float().cpu() for part in inputs.split(batch_size)])
    finally:
        if isinstance(model, nn.Module):
            model.train(training)


def accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor) -> float:
    """The share of (N, ...) inputs whose largest logit is that of their label (N,)."""
    return float((predict(model, inputs).argmax(1) == labels.cpu()).double().mean())


def _matrix(accuracies: Sequence[Sequence[float]]) -> np.ndarray:
    matrix = np.asarray(accuracies, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"Expected accuracies of T tasks after each of T tasks, not {matrix.shape}.")
    return matrix


def average_accuracy(accuracies: Sequence[Sequence[float]]) -> float:
    """ACC: the mean over all tasks after the last one.

    Args:
        accuracies: (T, T); row i, column k: on task k after task i. What lies above the diagonal is not
            looked at.
    """
    return float(_matrix(accuracies)[-1].mean())


def backward_transfer(accuracies: Sequence[Sequence[float]]) -> float:
    """BWT: the mean over all tasks but the last of R[T, k] - R[k, k]; below 0 is forgetting (Lopez-Paz and
    Ranzato 2017, arXiv:1706.08840). 0 for a single task.
    """
    matrix = _matrix(accuracies)
    return float((matrix[-1] - matrix.diagonal())[:-1].mean()) if len(matrix) > 1 else 0.0


def forward_transfer(accuracies: Sequence[Sequence[float]], alone: Sequence[float]) -> float:
    """FWT as CUBER has it: the mean over all tasks but the first of R[k, k] minus the accuracy of a reference
    (T,) on task k when it had just learned it, such as another method or a network of its own.
    """
    matrix = _matrix(accuracies)
    if len(alone) != len(matrix):
        raise ValueError(f"{len(alone)} reference accuracies for {len(matrix)} tasks.")
    gained = matrix.diagonal() - np.asarray(alone, dtype=np.float64)
    return float(gained[1:].mean()) if len(matrix) > 1 else 0.0


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share of their rows that are predicted right, (N,) classes both. 0.5 is
    chance for two classes, whatever their numbers.

    Raises:
        ValueError: nothing to compare, or (N,) of different lengths.
    """
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"Expected (N,) classes both, not {tuple(predicted.shape)}, {tuple(labels.shape)}.")
    predicted, labels = predicted.cpu(), labels.cpu()
    return float(np.mean([float((predicted[labels == y] == y).double().mean()) for y in labels.unique()]))
