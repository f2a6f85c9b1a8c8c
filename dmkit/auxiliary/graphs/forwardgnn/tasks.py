"""Local losses as tasks of the trainer: one layer after another, or all, each with its own optimiser."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset

from ....data.dataset import Rows
from ....training.arguments import TrainingArguments
from ....training.trainer import Step, Task, Trainer
from ... import stage
from .layers import normalize
from .model import ForwardGNN
from .objectives import Objective, SingleForward, objective
from .states import States, alternating, bottom_up, combined, inputs, label_state

if TYPE_CHECKING:
    from torch_geometric.data import Data


class LayerTask(Task):
    """One layer of a network, by its own loss; no other has a gradient.

    Args:
        model: whose layers before this one are trained.
        layer: counted from 0.
        objective: whose views hold this layer's inputs.
    """

    def __init__(self, model: ForwardGNN, layer: int, objective: Objective):
        model.requires_grad_(False)
        model.layers[layer].requires_grad_(True)
        self.modules = {"model": model}
        self.layer, self.objective = layer, objective
        self.gather = model.layers[layer].gather
        # A checkpoint of this layer belongs to the layers before it as they are now.
        digest = hashlib.sha256()
        for value in model.layers[:layer].state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        self.below = digest.hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer, "layers below": self.below}

    def prepare(self, device: torch.device) -> None:
        self.objective.to(device)
        self.gathered = [self.gather(normalize(x), edges) for x, edges in self.objective.views]

    def outputs(self) -> list[Tensor]:
        """h of this layer for each view."""
        return [self.modules["model"](gathered, self.layer) for gathered in self.gathered]

    def training_step(self, batch: Any, step: Step) -> dict[str, Tensor]:
        return {"loss": self.objective.loss(self.outputs(), batch)}

    @torch.no_grad()
    def advance(self) -> None:
        """Makes what this layer gives the objective's views."""
        following = self.objective.following(self.outputs())
        edges = [edges for _, edges in self.objective.views]
        self.objective.views = list(zip(following, edges, strict=True))


class TopDownTask(Task):
    """All layers at once, a step of each in turn, with signals from above; states of a step are kept for the
    next one, and in checkpoints.

    With (5) all layers read the states of the step before; with (6) every second layer goes first, and each
    reads the newest.

    Args:
        model: with `top_down`.
        objective: of one view.
        data: the graph.
    """

    def __init__(self, model: ForwardGNN, objective: Objective, data: Data):
        ((x, edges),) = objective.views
        above = bottom_up(model, x, edges)
        states = States(len(x), [h.shape[1] for h in above])
        for k, h in enumerate(above):
            states.put(k, normalize(h))
        self.modules = {"model": model, "states": states}
        self.objective, self.edges, self.top_down = objective, edges, model.config.top_down
        self.bottom, self.top = normalize(x), []
        if self.top_down == "input" and isinstance(objective, SingleForward):
            rows = objective.rows.columns
            self.top = [label_state(model, rows["node"], rows["label"], data.num_nodes)]
        self.layers: Sequence[nn.Module] = list(model.layers)

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        count = len(self.layers)
        order = alternating(count) if self.top_down == "input" else range(count)
        return {f"layer-{k}": list(self.layers[k].parameters()) for k in order}

    def prepare(self, device: torch.device) -> None:
        self.objective.to(device)
        self.edges, self.bottom = self.edges.to(device), self.bottom.to(device)
        self.top = [state.to(device) for state in self.top]

    def training_step(self, batch: Any, step: Step) -> dict[str, Tensor]:
        states = self.modules["states"]
        k = int(step.phase.rpartition("-")[2])
        if k == 0 or self.top_down == "input":
            self.read = [self.bottom, *states.values(), *self.top]
        gathered = self.layers[k].gather(inputs(self.read, k, self.top_down), self.edges)
        z = self.modules["model"](gathered, k)
        states.put(k, normalize(z.detach()))
        if self.top_down == "loss":
            z = combined(z, self.read, k)
        return {"loss": self.objective.loss([z], batch)}

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        modules["model"].save_pretrained(folder / "model")  # type: ignore[operator]


class _Batches(Dataset):
    """Rows that come as one batch, without a dict for each of them."""

    def __init__(self, rows: Rows):
        self.columns, self.length = rows.columns, len(rows)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {name: values[indices] for name, values in self.columns.items()}


def _as_it_is(batch: Any) -> Any:
    return batch


def train(task: Task, rows: Rows, training: TrainingArguments) -> Trainer:
    """Runs a task over a graph's training nodes or edges: all of them in a step where `train_batch_size`
    (of all processes together) is no smaller; else as many, of which a loss is taken.
    """
    most = max(1, len(rows) // PartialState().num_processes)
    arguments = replace(training, train_batch_size=min(training.train_batch_size, most))
    trainer = Trainer(task, _Batches(rows), arguments, collate_fn=_as_it_is)
    trainer.train()
    return trainer


def fit(model: ForwardGNN, data: Data, training: TrainingArguments) -> ForwardGNN:
    """Trains a network by the method in its config.

    Args:
        model: changed in place.
        data: as for `objective`.
        training: steps and rates of each layer. Layers have folders of their own, `layer-0` and so on, so
            that `resume_from_checkpoint="latest"` goes on with the layer that it was at.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: a graph that does not fit.
    """
    torch.manual_seed(training.seed)
    method = objective(model, data, torch.Generator().manual_seed(training.seed))
    if model.config.top_down is not None:
        train(TopDownTask(model, method, data), method.rows, training)
    else:
        for k in range(len(model.layers)):
            task = LayerTask(model, k, method)
            train(task, method.rows, stage(training, f"layer-{k}"))
            task.advance()
    return model.requires_grad_(True).eval()
