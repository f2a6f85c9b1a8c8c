"""Rules whose gradient is a weighted sum of the losses' gradients, with weights that depend on nothing but
their inner products M_ij = <g_i, g_j>.

So one pass over the gradients gives M (k x k), all else happens there, and one more pass combines. Under
several processes M is that of the mean gradients, which the mean of local M is not: the gradients are
averaged first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn import Parameter

from .base import GradientRule
from .flat import BLOCK, combine, flat_gradient, gram, unflatten

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class GramRule(GradientRule):
    """Base of such rules; a subclass writes `weigh`.

    Args:
        update_every: optimiser steps from one weighing to the next, at least 1. Between them the weights are
            held and a step costs one ordinary backward pass of the weighted sum.

    Raises:
        ValueError: `update_every` below 1.
    """

    def __init__(self, update_every: int = 1):
        if update_every < 1:
            raise ValueError(f"update_every counts steps and is at least 1, not {update_every}.")
        self.update_every = update_every
        self.stateful = update_every > 1
        self.held: np.ndarray | None = None
        self._gradients: dict[str, Tensor] = {}
        self._reached: set[int] = set()

    def weigh(self, inner: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Weights (k,) from the inner products (k, k), both float64 and finite."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, "update_every": self.update_every}

    def prepare(self, accelerator: Accelerator) -> None:
        if accelerator.distributed_type in SHARDED:
            raise NotImplementedError(
                f"{type(self).__name__} needs whole gradients, which {accelerator.distributed_type.value} "
                "shards; use UncertaintyWeighting or the sum there."
            )

    def needs_each(self, step: int) -> bool:
        return self.held is None or step % self.update_every == 0

    def backward_sum(
        self, accelerator: Accelerator, losses: Mapping[str, Tensor], parameters: Sequence[Parameter]
    ) -> None:
        if self.held is None or len(losses) != len(self.held):
            known = 0 if self.held is None else len(self.held)
            raise ValueError(f"{type(self).__name__} holds {known} weights, but got {len(losses)} losses.")
        weighted = (loss * w for loss, w in zip(losses.values(), self.held.tolist(), strict=True))
        accelerator.backward(sum(weighted))

    def collect(
        self, accelerator: Accelerator, losses: Iterable[tuple[str, Tensor]], parameters: Sequence[Parameter]
    ) -> None:
        for name, loss in losses:
            if accelerator.scaler is not None:
                loss = accelerator.scaler.scale(loss)
            gradient, reached = flat_gradient(loss, parameters)
            del loss  # and its graph, before the next forward pass
            self._reached.update(i for i, yes in enumerate(reached) if yes)
            if name in self._gradients:
                self._gradients[name] += gradient
            else:
                self._gradients[name] = gradient

    def finish(
        self, accelerator: Accelerator, parameters: Sequence[Parameter], generator: torch.Generator
    ) -> None:
        if not self._gradients:
            return
        rows = list(self._gradients.values())
        if accelerator.num_processes > 1:
            for row in rows:
                for part in row.split(BLOCK):
                    part.copy_(accelerator.reduce(part, reduction="mean"))
        scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
        inner = gram(rows).numpy() / scale**2
        if np.isfinite(inner).all():
            self.held = self.weigh(inner, generator)
        # What is not finite goes on to the loss scaler, which skips the step, or to the trainer's guard.
        weights = np.ones(len(rows)) if self.held is None else self.held
        for i, gradient in enumerate(unflatten(combine(rows, weights.tolist()), parameters)):
            if i in self._reached:  # else no gradient, as after an ordinary backward pass
                parameters[i].grad = gradient
        self._gradients, self._reached = {}, set()

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.held is None else {"weights": torch.from_numpy(self.held.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.held = state["weights"].numpy().copy() if "weights" in state else None
