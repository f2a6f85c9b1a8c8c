"""Uncertainty weighting (Kendall et al. 2018, arXiv 1705.07115), as ANT uses it.

    J = Σ_i ½ (e^(-s_i) L_i + s_i),    s learned with the network

At the stationary s_i = ln L_i the network descends ½ Σ ln L_i: a loss counts by its relative, not its
absolute, change, and any constant weight of a loss cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import Parameter

from .base import GradientRule


class UncertaintyWeighting(GradientRule):
    """Learns the weight e^(-s)/2 of each loss, for the price of one number each.

    s is a group of its own in the optimiser, with the learning-rate schedule of the network but its own rate
    and no weight decay. It belongs to no module, so neither EMA nor the saved model knows it.

    Args:
        num_losses: k, at least 1.
        learning_rate: of s, positive; with AdamW s moves by about this much a step.

    Raises:
        ValueError: a number out of range.
    """

    stateful = True

    def __init__(self, num_losses: int, learning_rate: float = 0.025):
        if num_losses < 1:
            raise ValueError(f"num_losses is at least 1, not {num_losses}.")
        if not learning_rate > 0:
            raise ValueError(f"The learning rate of s must be positive, not {learning_rate}.")
        self.learning_rate = learning_rate
        self.s = nn.Parameter(torch.zeros(num_losses))

    def settings(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, "learning_rate": self.learning_rate}

    def prepare(self, accelerator: Accelerator) -> None:
        self.s.data = self.s.data.to(accelerator.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.s], "lr": self.learning_rate, "weight_decay": 0.0}]

    def backward_sum(
        self, accelerator: Accelerator, losses: Mapping[str, Tensor], parameters: Sequence[Parameter]
    ) -> None:
        if len(losses) != len(self.s):
            raise ValueError(
                f"UncertaintyWeighting was made for {len(self.s)} losses, but got {len(losses)}."
            )
        weighted = torch.stack(list(losses.values())) * torch.exp(-self.s)
        accelerator.backward(0.5 * weighted.sum())

    def finish(
        self, accelerator: Accelerator, parameters: Sequence[Parameter], generator: torch.Generator
    ) -> None:
        accelerator.backward(0.5 * self.s.sum())  # once a step, however many micro-batches
        if accelerator.num_processes > 1:  # DDP averages the network's gradient only
            self.s.grad = accelerator.reduce(self.s.grad, reduction="mean")

    def state_dict(self) -> dict[str, Tensor]:
        return {"s": self.s.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state["s"].shape != self.s.shape:
            raise ValueError(f"s has {len(state['s'])} entries, but this rule weighs {len(self.s)} losses.")
        self.s.data.copy_(state["s"])
