"""GPM, and what TRGP and CUBER share with it: tasks one after the other, and a memory of where their inputs
lie. Equations: see the package.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import unknown_name
from ....training.rules import GradientRule, SubspaceProjection, sum_losses
from ....training.subspaces import Layer, check_layer, matrix
from ....training.trainer import Task
from .measuring import measure
from .pools import Learned, extended
from .scaling import ScaledNetwork
from .task import ContinualTask


class GPM:
    """Gradient projection memory: layers never move along the inputs of old tasks.

    What is neither projected nor a head (norms, embeddings) learns in the first task and is frozen from then
    on. Heads are free at all times: a shared one forgets.

    Args:
        model: the network; it is trained in place.
        layers: names of the `Linear` and `Conv2d` modules that are projected; None for all that are trained
            and no heads.
        heads: names of modules that are never projected, such as one head for each task.
        energy: the share of the inputs' energy that a task's basis holds, in (0, 1]; a number for all layers
            or one for each by name.
        energy_step: added for each task before, up to 1 in all.

    Raises:
        ValueError: an unknown module, a convolution in groups, no layer, a number out of range, or a batch
            norm with running statistics, which would change for all tasks (use `track_running_stats=False`,
            or another norm).
        TypeError: a layer that is neither `Linear` nor `Conv2d`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        heads: Sequence[str] = (),
        energy: float | Mapping[str, float] = 0.97,
        energy_step: float = 0.0,
    ):
        self.model, self.heads, self.energy, self.energy_step = model, tuple(heads), energy, energy_step
        self.layers = _select(model, layers, self.heads)
        shares = energy.values() if isinstance(energy, Mapping) else [energy]
        for share in shares:
            if not 0 < share <= 1:
                raise ValueError(f"energy is a share in (0, 1], not {share}.")
        if isinstance(energy, Mapping):
            for name in {*energy} ^ {*self.layers}:
                raise unknown_name("layer with an energy", name, self.layers)
        if energy_step < 0:
            raise ValueError(f"energy_step is at least 0, not {energy_step}.")
        self.pools = {
            name: matrix(layer).detach().new_zeros(matrix(layer).shape[1], 0)
            for name, layer in self.layers.items()
        }
        self.tasks: list[Learned] = []
        self._current: tuple[ContinualTask, GradientRule, Learned] | None = None
        self._thawed: list[nn.Parameter] = []

    def settings(self) -> dict[str, Any]:
        """The arguments after the model, as JSON."""
        energy = dict(self.energy) if isinstance(self.energy, Mapping) else self.energy
        return {
            "layers": list(self.layers),
            "heads": list(self.heads),
            "energy": energy,
            "energy_step": self.energy_step,
        }

    def begin_task(self, task: Task, batches: Iterable[Any] = ()) -> tuple[ContinualTask, GradientRule]:
        """Starts the next task: a task and a gradient rule for the trainer, whose optimiser is a fresh one.

        Between two tasks, and at the end, comes `end_task`. A model that is trained already has its first
        task behind it: call `end_task` right away.

        Args:
            task: trains `model`, alone or beside others.
            batches: of the new task's data, to see what it has in common with old ones; GPM needs none, and
                the first task neither.

        Raises:
            ValueError: a task that does not train the model, no batch where they are needed, or a task that
                has not ended.
        """
        if self._current is not None:
            raise ValueError("end_task comes before the next begin_task.")
        learned = self._relate(task, batches) if self.tasks else Learned()
        scales = {
            name: {j: nn.Parameter(q.clone()) for j, q in of_layer.items()}
            for name, of_layer in learned.scales.items()
        }
        free = self._free()
        network = self._network(scales)
        settings = {
            "learner": type(self).__name__,
            "task": len(self.tasks),
            **self.settings(),
            "regimes": {
                name: {str(j): r for j, r in found.items()} for name, found in learned.regimes.items()
            },
        }
        ours = ContinualTask(task, self.model, network, free, scales, self._scale_rate(), settings)
        learned.scales = scales  # type: ignore[assignment]
        kept = {id(p) for p in free.values()}
        self._thawed = [p for p in self.model.parameters() if p.requires_grad and id(p) not in kept]
        for parameter in self._thawed:
            parameter.requires_grad_(False)
        self.model.train()
        rule = self._rule(learned) if self.tasks else sum_losses
        self._current = ours, rule, learned
        return ours, rule

    def end_task(self, batches: Iterable[Any]) -> None:
        """Ends the task: keeps the directions of its inputs and gives the model back.

        Args:
            batches: some of its training data; a few hundred items are enough.

        Raises:
            ValueError: no task has begun, no batch, or a layer that the task never calls.
        """
        if self._current is None:
            raise ValueError("begin_task comes before end_task.")
        ours, rule, learned = self._current
        ours.release()
        learned.scales = {
            name: {j: q.detach().cpu().clone() for j, q in of_layer.items()}
            for name, of_layer in learned.scales.items()
        }
        learned.regimes = self._final(rule, learned)
        gradients, spans = measure(
            ours.inner,
            self.model,
            self._network(learned.scales),
            self.layers,
            batches,
            gradients=self._keeps_gradients,
            inputs=True,
        )
        for name, span in spans.items():
            of_layer = self.energy[name] if isinstance(self.energy, Mapping) else self.energy
            share = min(1.0, of_layer + self.energy_step * len(self.tasks))
            self.pools[name], learned.columns[name] = extended(self.pools[name].cpu(), span, share)
        learned.gradients = {name: gradient.cpu() for name, gradient in gradients.items()}
        for parameter in self._thawed:
            parameter.requires_grad_(True)
        self.tasks.append(learned)
        self._current, self._thawed = None, []
        if full := [name for name, pool in self.pools.items() if pool.shape[0] == pool.shape[1]]:
            warnings.warn(
                f"No direction is left in {', '.join(full)}: such layers are frozen for tasks that are not "
                "related to old ones. Lower `energy`, or use wider layers.",
                stacklevel=2,
            )

    @contextmanager
    def use_task(self, task: int) -> Iterator[nn.Module]:
        """The model with the weights that a finished task is evaluated with; restored bit for bit.

        Args:
            task: its number, from 0. The scale matrices of TRGP and CUBER belong to a task, so its number has
                to be known even where all tasks share a head.

        Raises:
            ValueError: a task that is not finished.
        """
        learned = self._learned(task)
        with torch.no_grad():
            scaled = self._network(learned.scales).weights()
            own = {name: self.model.get_parameter(name) for name in scaled}
            before = {name: parameter.detach().clone() for name, parameter in own.items()}
            try:
                for name, parameter in own.items():
                    parameter.copy_(scaled[name])
                yield self.model
            finally:
                for name, parameter in own.items():
                    parameter.copy_(before[name])

    def regimes(self, layer: str, task: int) -> dict[int, int]:
        """The regime in a layer of each task before `task`, as it was at the end of that.

        Raises:
            ValueError: an unknown layer, or a task that is not finished.
        """
        found = self._learned(task).regimes.get(self._layer(layer), {})
        return {j: found.get(j, 1) for j in range(task)}

    def subspace(self, layer: str, task: int) -> Tensor:
        """B (d, r) of a layer and a finished task, with orthonormal columns.

        Raises:
            ValueError: an unknown layer, or a task that is not finished.
        """
        columns = self._learned(task).columns[self._layer(layer)]
        return self.pools[layer][:, columns]

    def memory_numel(self) -> int:
        """How many numbers are kept: pools, gradients and scale matrices."""
        kept = list(self.pools.values())
        for learned in self.tasks:
            kept += learned.gradients.values()
            kept += [scale for of_layer in learned.scales.values() for scale in of_layer.values()]
        return sum(tensor.numel() for tensor in kept)

    def describe(self) -> str:
        """A table: how full each layer's pool is, and which parameters are free or frozen after task 0."""
        lines = [f"{'layer':40} {'directions':>12} {'of':>6}"]
        lines += [
            f"{name:40} {pool.shape[1]:12} {pool.shape[0]:6}  projected" for name, pool in self.pools.items()
        ]
        projected = set(self._projected())
        for name, parameter in self.model.named_parameters():
            if name not in projected and parameter.requires_grad:
                lines.append(f"{name:40} {'':19}  {'head' if self._is_head(name) else 'frozen'}")
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes everything but the model's weights: `continual.safetensors` and `continual.json`.

        Raises:
            ValueError: in the middle of a task.
        """
        from .files import save

        if self._current is not None:
            raise ValueError("end_task comes before save.")
        save(self, folder)

    @staticmethod
    def load(folder: str | os.PathLike, model: nn.Module) -> GPM:
        """The learner (GPM, TRGP or CUBER) that `save` wrote, for the model with the weights of that time.

        Raises:
            FileFormatError: a missing or foreign file, or one that does not fit the model.
        """
        from .files import load

        return load(folder, model)

    # What TRGP and CUBER change

    _keeps_gradients = False

    def _relate(self, task: Task, batches: Iterable[Any]) -> Learned:
        """Regimes and fresh scale matrices of a new task."""
        return Learned()

    def _rule(self, learned: Learned) -> GradientRule:
        return SubspaceProjection(self.layers, self.pools)

    def _final(self, rule: GradientRule, learned: Learned) -> dict[str, dict[int, int]]:
        return learned.regimes

    def _scale_rate(self) -> float:
        return 0.0

    # Helpers

    def _network(self, scales: Mapping[str, Mapping[int, Tensor]]) -> ScaledNetwork:
        bases = {n: {j: self.subspace(n, j) for j in of_layer} for n, of_layer in scales.items()}
        return ScaledNetwork(self.model, self.layers, bases, scales)

    def _learned(self, task: int) -> Learned:
        if not 0 <= task < len(self.tasks):
            raise ValueError(f"There is no finished task {task}; there are {len(self.tasks)}, from 0.")
        return self.tasks[task]

    def _layer(self, name: str) -> str:
        if name not in self.layers:
            raise unknown_name("layer", name, self.layers)
        return name

    def _is_head(self, name: str) -> bool:
        return any(name == head or name.startswith(f"{head}.") for head in self.heads)

    def _projected(self) -> list[str]:
        return [
            f"{n}.{kind}" for n in self.layers for kind in ("weight", "bias") if hasattr(self.layers[n], kind)
        ]

    def _free(self) -> dict[str, nn.Parameter]:
        """The parameters that the next task trains, by name."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.tasks:
            return trained
        projected = set(self._projected())
        return {name: p for name, p in trained.items() if name in projected or self._is_head(name)}


def _select(model: nn.Module, names: Sequence[str] | None, heads: Sequence[str]) -> dict[str, Layer]:
    modules = dict(model.named_modules())
    for name in (*(names or ()), *heads):
        if name not in modules:
            raise unknown_name("module", name, modules)
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise ValueError(
                f"The running statistics of {name} would change for all tasks; use a batch norm with "
                "track_running_stats=False, or another norm."
            )
    if names is None:
        names = [
            name
            for name, module in modules.items()
            if isinstance(module, Layer)
            and module.weight.requires_grad
            and not any(name == head or name.startswith(f"{head}.") for head in heads)
        ]
    if not names:
        raise ValueError("There is no layer to project.")
    layers: dict[str, Layer] = {}
    for name in names:
        check_layer(name, modules[name])
        layers[name] = modules[name]  # type: ignore[assignment]
    return layers
