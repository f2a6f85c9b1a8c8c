"""What clients and server compute, each equation by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def ramp(progress: float, gamma: float = 5.0) -> float:
    """α of (4), 0 at the start and 2/(1 + e^-γ) - 1 at the end.

    Args:
        progress: p, in [0, 1].
        gamma: γ; 5 here, 10 in DANN.
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, alpha: float) -> Tensor:
        context.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -context.alpha * gradient, None


def reverse_gradient(x: Tensor, alpha: float) -> Tensor:
    """R_α of (2): x as it is, and -α times its gradient."""
    return _Reversal.apply(x, alpha)


def average_states(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """(5): the weighted mean of networks' tensors.

    What is not floating point, such as a batch norm's count, is the first network's.

    Args:
        states: of one architecture.
        weights: w_k up to a factor, not negative; equal by default.

    Raises:
        ValueError: no network, other tensors in one than in another, nothing to average, or bad weights.
    """
    if not states:
        raise ValueError("There is no network to average.")
    shares = [1.0] * len(states) if weights is None else list(weights)
    total = math.fsum(shares)
    if len(shares) != len(states) or min(shares) < 0 or not 0 < total < math.inf:
        raise ValueError(f"Weights are {len(states)} numbers, not negative, not all 0; not {shares}.")
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("Networks of different architectures cannot be averaged.")
    if not any(value.is_floating_point() for value in states[0].values()):
        raise ValueError("These networks have no floating point tensor to average.")
    averaged = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            # In float64, so that equal networks average to themselves.
            parts = [w / total * state[name].double() for w, state in zip(shares, states, strict=True)]
            averaged[name] = torch.stack(parts).sum(0).to(first.dtype)
        else:
            averaged[name] = first.clone()
    return averaged


def majority_vote(logits: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """v of (6).

    Args:
        logits: (K, N, C) of K clients for N inputs.
        threshold: τ in [0, 1]; an input counts if ⌈τ K⌉ clients or more agree.

    Returns:
        Classes (N,), that of the largest sum of probabilities where several have the most votes; whether an
        input counts (N,), bool; and the share of clients that chose the class (N,).

    Raises:
        ValueError: another shape, or a threshold out of range.
    """
    if logits.ndim != 3 or not len(logits) or not 0 <= threshold <= 1:
        raise ValueError(
            f"Logits (K, N, C) and a threshold in [0, 1], not {tuple(logits.shape)}, {threshold}."
        )
    clients, _, classes = logits.shape
    votes = torch.nn.functional.one_hot(logits.argmax(2), classes).sum(0)
    most = votes.amax(1, keepdim=True)
    beliefs = logits.double().softmax(2).sum(0)
    labels = torch.where(votes == most, beliefs, -1.0).argmax(1)
    needed = math.ceil(threshold * clients - 1e-9)
    return labels, most[:, 0] >= needed, most[:, 0] / clients


def group_effect(global_accuracy: float, client_accuracies: Sequence[float]) -> float:
    """(7): what averaging gained over the mean client, below 0 where it lost.

    Raises:
        ValueError: no client.
    """
    if not client_accuracies:
        raise ValueError("There is no client.")
    return global_accuracy - math.fsum(client_accuracies) / len(client_accuracies)
