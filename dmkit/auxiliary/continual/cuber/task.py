"""Any task of the trainer as one of a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ....training.part import TrainedPart
from ....training.trainer import Step, Task
from .measuring import module_name

SCALE = "continual_scale"


class ContinualTask(Task):
    """Trains what a learner leaves free of a task's model, and the task's scale matrices.

    Args:
        inner: the task.
        model: the model of it that is learned continually.
        network: what is called in the model's place.
        parameters: the model's free parameters by name.
        scales: scale matrices by layer and old task.
        scale_rate: learning rate of the scale matrices.
        settings: what must not change between a run and its continuation.
    """

    def __init__(
        self,
        inner: Task,
        model: nn.Module,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        scales: Mapping[str, Mapping[int, nn.Parameter]],
        scale_rate: float,
        settings: Mapping[str, Any],
    ):
        self.inner, self.model, self.network = inner, model, network
        self.scale_rate, self._settings = scale_rate, dict(settings)
        self.scales = [scale for of_layer in scales.values() for scale in of_layer.values()]
        named = {f"{SCALE}.{n}.{j}": scale for n, of_layer in scales.items() for j, scale in of_layer.items()}
        self.slot, self.modules = module_name(inner, model), inner.modules
        # The inner task has the same dictionary: it calls what the trainer puts there.
        self.modules[self.slot] = TrainedPart(network, {**parameters, **named})

    def release(self) -> None:
        """Gives the model back to the inner task."""
        self.modules[self.slot] = self.model

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        groups = self.inner.parameter_groups(parameters)
        if not self.scales:
            return groups
        ours = {id(scale) for scale in self.scales}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in ours]
        return [*groups, {"params": self.scales, "lr": self.scale_rate, "weight_decay": 0.0}]

    def prepare(self, device: torch.device) -> None:
        self.network.to(device)  # the trainer sees only the free parameters
        self.inner.prepare(device)

    def training_step(self, batch: Any, step: Step) -> Mapping[str, Tensor]:
        return self.inner.training_step(batch, step)

    def each_loss(self, batch: Any, step: Step) -> Iterator[tuple[str, Tensor]]:
        yield from self.inner.each_loss(batch, step)

    def settings(self) -> dict[str, Any]:
        return {**self.inner.settings(), **self._settings}

    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image | None:
        return self.inner.sample({**modules, self.slot: self.network})

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        self.inner.save(folder, {**modules, self.slot: self.model})
