"""The gradient rule of CUBER: a projection that lets the weights into the subspaces of agreeing old tasks, as
long as they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from ....training.rules import SubspaceProjection
from ....training.rules.projection import write_gradient
from ....training.subspaces import Layer, gradient_matrix, matrix

CHECKS = ("step", "epoch", "ema")
DECAY = 0.9


class RegimeProjection(SubspaceProjection):
    """Descends the sum of the losses plus λ Σ |(W - W_start) B_j|_F over the tasks j of regime 3, without
    moving along any direction of a task of regime 1 or 2.

    The weights at its making are W_start. All decisions stay on the device.

    Args:
        layers: by name.
        pools: O (d, r) of each.
        columns: by layer, the pool's columns of every old task.
        gradients: by layer, for the tasks that are in regime 3: the gradient (out, d) that they ended with.
        eps2: ε₂.
        reg_weight: λ.
        check: one of `CHECKS`.
        steps_per_epoch: of `check="epoch"`; may be set until the first step.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        pools: Mapping[str, Tensor],
        columns: Mapping[str, Sequence[Sequence[int]]],
        gradients: Mapping[str, Mapping[int, Tensor]],
        *,
        eps2: float,
        reg_weight: float,
        check: str = "step",
        steps_per_epoch: int = 1,
    ):
        super().__init__(layers, pools)
        self.eps2, self.reg_weight, self.check = eps2, reg_weight, check
        self.steps_per_epoch, self._steps = steps_per_epoch, 0
        self.tasks = {name: list(found) for name, found in gradients.items()}
        self.stateful = bool(self.tasks)
        self._old = {name: torch.stack(list(found.values())) for name, found in gradients.items()}
        self._open, self._members, self._others, self._start, self._seen = {}, {}, {}, {}, {}
        for name, pool in self.bases.items():
            member = torch.zeros(len(columns[name]), pool.shape[1], dtype=torch.bool)
            for j, own in enumerate(columns[name]):
                member[j, list(own)] = True
            mine = self.tasks.get(name, [])
            others = [j for j in range(len(member)) if j not in mine]
            # A column of the pool always belongs to some task, so without regime 3 all are protected.
            self._others[name] = member[others].any(0)
            if mine:
                self._members[name] = member[mine]
                self._open[name] = torch.ones(len(mine), dtype=torch.bool)
                self._start[name] = matrix(layers[name]).detach().clone()
                self._seen[name] = torch.zeros_like(self._start[name])

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        for kept in (self._old, self._open, self._members, self._others, self._start, self._seen):
            for name in kept:
                kept[name] = kept[name].to(accelerator.device)

    def still_open(self) -> dict[str, list[int]]:
        """The tasks of each layer that are still in regime 3."""
        return {
            name: [j for j, yes in zip(tasks, self._open[name].tolist(), strict=True) if yes]
            for name, tasks in self.tasks.items()
        }

    def protected(self, name: str) -> Tensor:
        if name not in self.tasks:
            return self.bases[name]
        closed = self._members[name] & ~self._open[name][:, None]
        return self.bases[name] * (self._others[name] | closed.any(0))

    @torch.no_grad()
    def finish(
        self, accelerator: Accelerator, parameters: Sequence[Parameter], generator: torch.Generator
    ) -> None:
        scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
        self._steps += 1
        for name in self.tasks:
            gradient = gradient_matrix(self.layers[name])
            self._test(name, gradient / scale)
            penalty = self._penalty(name)
            write_gradient(self.layers[name], gradient + scale * self.reg_weight * penalty)
        super().finish(accelerator, parameters, generator)

    def _test(self, name: str, gradient: Tensor) -> None:
        """Closes the tasks with <g_j, g> < ε₂ |g_j| |g|; a gradient that is not finite closes none."""
        seen = self._seen[name]
        if self.check == "step":
            seen = gradient
        elif self.check == "ema":
            seen = self._seen[name] = DECAY * seen + (1 - DECAY) * gradient
        else:
            seen = self._seen[name] = seen + gradient
            if self._steps % self.steps_per_epoch:
                return
            self._seen[name] = torch.zeros_like(seen)
        old = self._old[name]
        inner = (old * seen).sum(dim=(1, 2))
        disagrees = inner < self.eps2 * old.flatten(1).norm(dim=1) * seen.norm()
        self._open[name] = self._open[name] & ~disagrees

    def _penalty(self, name: str) -> Tensor:
        """The gradient of Σ |D|_F, D = (W - W_start) B_j: D / |D| B_j', and 0 where D is 0."""
        moved = (matrix(self.layers[name]) - self._start[name]) @ self.bases[name]  # (out, r)
        masks = self._members[name] & self._open[name][:, None]
        norms = (moved.square() @ masks.T.to(moved)).sum(0).sqrt()  # |D| of each task
        weights = (masks / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]).sum(0)
        return (moved * weights) @ self.bases[name].T

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "eps2": self.eps2,
            "reg_weight": self.reg_weight,
            "check": self.check,
        }

    def state_dict(self) -> dict[str, Tensor]:
        state = {"steps": torch.tensor(self._steps)}
        for name in self.tasks:
            state[f"open.{name}"] = self._open[name].clone()
            if self.check != "step":
                state[f"seen.{name}"] = self._seen[name].clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._steps = int(state["steps"])
        for name in self.tasks:
            self._open[name] = state[f"open.{name}"].to(self._open[name].device)
            if self.check != "step":
                self._seen[name] = state[f"seen.{name}"].to(self._seen[name])
