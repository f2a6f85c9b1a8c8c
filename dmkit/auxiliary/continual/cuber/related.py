"""What old tasks have to give to a new one: TRGP adds scale matrices for those that are related, CUBER lets
the weights into the subspaces of those that agree. Equations: see the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import unknown_name
from ....training.rules import GradientRule
from ....training.trainer import Task
from .gpm import GPM
from .measuring import measure
from .pools import Learned
from .rule import CHECKS, RegimeProjection


class TRGP(GPM):
    """Trust region gradient projection: a new task may scale the weights within the subspaces of related old
    tasks, for itself alone.

    Args:
        model, layers, heads, energy, energy_step: as for `GPM`.
        eps1: ε₁ of sufficient projection, in [0, 1).
        max_related: old tasks that may be related to a new one, in each layer; those with the largest
            projection.
        scale_learning_rate: of the scale matrices, positive. That of the weights, as in the released code,
            can diverge; a tenth of it is safer.

    Raises:
        ValueError, TypeError: as `GPM`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        heads: Sequence[str] = (),
        energy: float | Mapping[str, float] = 0.97,
        energy_step: float = 0.0,
        eps1: float = 0.5,
        max_related: int = 2,
        scale_learning_rate: float = 1e-3,
    ):
        super().__init__(model, layers, heads=heads, energy=energy, energy_step=energy_step)
        if not 0 <= eps1 < 1:
            raise ValueError(f"eps1 is in [0, 1), not {eps1}.")
        if max_related < 0:
            raise ValueError(f"max_related is at least 0, not {max_related}.")
        if not scale_learning_rate > 0:
            raise ValueError(f"scale_learning_rate is positive, not {scale_learning_rate}.")
        self.eps1, self.max_related, self.scale_learning_rate = eps1, max_related, scale_learning_rate

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "eps1": self.eps1,
            "max_related": self.max_related,
            "scale_learning_rate": self.scale_learning_rate,
        }

    def _relate(self, task: Task, batches: Iterable[Any]) -> Learned:
        batches = list(batches)
        gradients, _ = measure(
            task, self.model, self.model, self.layers, batches, gradients=True, inputs=False
        )
        learned = Learned()
        for name, gradient in gradients.items():
            learned.regimes[name] = self._regimes(name, gradient.cpu())
            learned.scales[name] = {
                j: torch.eye(self.subspace(name, j).shape[1], dtype=gradient.dtype, device=gradient.device)
                for j in learned.regimes[name]
            }
        return learned

    def _regimes(self, name: str, gradient: Tensor) -> dict[int, int]:
        """Which old tasks are related in a layer, and how, from the new task's gradient (out, d)."""
        norm = gradient.norm()
        shares = {j: float((gradient @ self.subspace(name, j)).norm()) for j in range(len(self.tasks))}
        sufficient = [j for j, share in shares.items() if share >= self.eps1 * norm and share > 0]
        nearest = sorted(sufficient, key=lambda j: shares[j], reverse=True)[: self.max_related]
        return {j: self._regime(name, j, gradient) for j in sorted(nearest)}

    def _regime(self, name: str, task: int, gradient: Tensor) -> int:
        return 2

    def _scale_rate(self) -> float:
        return self.scale_learning_rate


class CUBER(TRGP):
    """TRGP where the weights may also move within the subspaces of old tasks whose gradients agree.

    Args:
        model, layers, heads, energy, energy_step, eps1, max_related, scale_learning_rate: as for `TRGP`.
        eps2: ε₂ of positive correlation, in [0, 1); 0 in the paper. The gradient of a task that has converged
            is mostly noise, whose sign says little: 0.2 keeps unrelated tasks apart.
        reg_weight: λ, at least 0. The paper does not give it.
        check: what the gradient of the new task is in the test of every step: that of the `step`, the mean of
            an `epoch` (tested at its end), or an exponential average (`ema`, 0.9). A single step is noisy,
            and a task that falls to regime 2 stays there.
        gradient_floor: old tasks whose gradient is at most so many times the new one's are never in regime 3.

    Raises:
        ValueError, TypeError: as `TRGP`; an unknown `check`.
    """

    _keeps_gradients = True

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        heads: Sequence[str] = (),
        energy: float | Mapping[str, float] = 0.97,
        energy_step: float = 0.0,
        eps1: float = 0.5,
        max_related: int = 2,
        scale_learning_rate: float = 1e-3,
        eps2: float = 0.0,
        reg_weight: float = 1.0,
        check: str = "step",
        gradient_floor: float = 0.0,
    ):
        super().__init__(
            model,
            layers,
            heads=heads,
            energy=energy,
            energy_step=energy_step,
            eps1=eps1,
            max_related=max_related,
            scale_learning_rate=scale_learning_rate,
        )
        if not 0 <= eps2 < 1:
            raise ValueError(f"eps2 is in [0, 1), not {eps2}.")
        for what, value in (("reg_weight", reg_weight), ("gradient_floor", gradient_floor)):
            if value < 0:
                raise ValueError(f"{what} is at least 0, not {value}.")
        if check not in CHECKS:
            raise unknown_name("check", check, CHECKS)
        self.eps2, self.reg_weight, self.check, self.gradient_floor = eps2, reg_weight, check, gradient_floor

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "eps2": self.eps2,
            "reg_weight": self.reg_weight,
            "check": self.check,
            "gradient_floor": self.gradient_floor,
        }

    def _regime(self, name: str, task: int, gradient: Tensor) -> int:
        kept = self.tasks[task].gradients[name]
        agrees = (kept * gradient).sum() >= self.eps2 * kept.norm() * gradient.norm()
        return 3 if agrees and kept.norm() > self.gradient_floor * gradient.norm() else 2

    def _rule(self, learned: Learned) -> GradientRule:
        open_tasks = {
            name: [j for j, regime in found.items() if regime == 3]
            for name, found in learned.regimes.items()
            if 3 in found.values()
        }
        columns = {name: [task.columns[name] for task in self.tasks] for name in self.layers}
        return RegimeProjection(
            self.layers,
            self.pools,
            columns,
            {name: {j: self.tasks[j].gradients[name] for j in tasks} for name, tasks in open_tasks.items()},
            eps2=self.eps2,
            reg_weight=self.reg_weight,
            check=self.check,
        )

    def _final(self, rule: GradientRule, learned: Learned) -> dict[str, dict[int, int]]:
        if not isinstance(rule, RegimeProjection):
            return learned.regimes
        still = rule.still_open()
        return {
            name: {j: 3 if j in still.get(name, ()) else 2 for j in found}
            for name, found in learned.regimes.items()
        }
