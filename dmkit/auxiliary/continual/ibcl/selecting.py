"""Choosing among generated models by validation data, and how many of them are bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....metrics.classification import accuracy


@dataclass(frozen=True)
class Selection:
    """What `select` found.

    Attributes:
        best: the state dict of the highest score.
        scores: the preference-weighted validation accuracy of each model, in [0, 1].
        bad_share: the share of models whose score is below `floor`.
    """

    best: dict[str, Tensor]
    scores: list[float]
    bad_share: float


def weighted_accuracy(
    module: nn.Module,
    state: Mapping[str, Tensor],
    data: Sequence[tuple[Tensor, Tensor]],
    preference: Sequence[float],
) -> float:
    """Σ w_k · accuracy on task k, of a network with some weights; (inputs, labels) for each task."""

    def network(inputs: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(state), (inputs,))

    return sum(w * accuracy(network, x, y) for w, (x, y) in zip(preference, data, strict=True) if w)


def select(
    module: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    data: Sequence[tuple[Tensor, Tensor]],
    preference: Sequence[float],
    floor: float = 0.5,
) -> Selection:
    """The best of some generated models on validation data; never choose by the data that is reported.

    Args:
        module: the network.
        states: its weights, at least one.
        data: (inputs, labels) of each task.
        preference: a weight for each task.
        floor: below this score a model counts as bad.

    Raises:
        ValueError: no model, or data that is not of one set for each weight.
    """
    if not states:
        raise ValueError("There is no model to select from.")
    if len(data) != len(preference):
        raise ValueError(f"{len(data)} sets of validation data for {len(preference)} weights.")
    scores = [weighted_accuracy(module, state, data, preference) for state in states]
    best = max(range(len(scores)), key=scores.__getitem__)
    return Selection(dict(states[best]), scores, sum(score < floor for score in scores) / len(scores))
