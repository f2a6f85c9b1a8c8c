"""Classes of nodes and probabilities of links, from all layers together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .labels import check_graph, training_nodes
from .layers import normalize
from .model import ForwardGNN
from .objectives import METHODS, LabelAppending, Links, SingleForward, goodness, objective
from .states import alternating, bottom_up, combined, inputs, label_state

if TYPE_CHECKING:
    from torch_geometric.data import Data

SWEEPS, SETTLED = 10, 2  # with (6): sweeps over the layers, and how many are left out of the mean


@torch.no_grad()
def outputs(model: ForwardGNN, x: Tensor, edges: Tensor, top: list[Tensor], depth: int) -> list[Tensor]:
    """What each layer is scored by, several for each with (6)."""
    top_down = model.config.top_down
    found = bottom_up(model, x, edges, depth)
    if top_down is None:
        return found
    states = [normalize(x), *map(normalize, found), *top]
    if top_down == "loss":
        return [combined(z, states, k) for k, z in enumerate(found)]

    settled = []
    for sweep in range(SWEEPS):
        for k in alternating(depth):
            z = model(model.layers[k].gather(inputs(states, k, top_down), edges), k)
            states[k + 1] = normalize(z)
            if sweep >= SETTLED:
                settled.append(z)
    return settled


def _depth(model: ForwardGNN, layers: int | None) -> int:
    most = len(model.layers)
    if layers is not None and (not 1 <= layers <= most or (model.config.top_down and layers < most)):
        raise ValueError(f"layers is {layers}; it must be 1 to {most}, or all of them with top-down signals.")
    return layers or most


def _mean(values: list[Tensor], of: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([of(z) for z in values]).mean(0)


@torch.no_grad()
def scores(model: ForwardGNN, data: Data, layers: int | None = None) -> Tensor:
    """How much each class is each node's.

    Args:
        model: to classify nodes.
        data: as for `fit`; only labels in `train_mask` are read.
        layers: use the first ones only; what they give is what a network of that depth gives.

    Returns:
        (N, K). For "sf" probabilities (2); for FF the goodness (4), where training nodes keep their label
        whatever the class, so that their rows say nothing.

    Raises:
        ValueError: a graph that does not fit, a number of layers that there is not, or a model for links.
    """
    depth = _depth(model, layers)
    if model.config.method.startswith("link"):
        raise ValueError("This model is for links: link_scores has its probabilities.")
    if model.config.method == "sf":
        method = objective(model, data)
        assert isinstance(method, SingleForward)
        ((x, edges),) = method.views
        rows, top = method.rows.columns, []
        if model.config.top_down == "input":
            top = [label_state(model, rows["node"], rows["label"], data.num_nodes)]
        return _mean(outputs(model, x, edges, top, depth), lambda z: method.logits(z).softmax(1))
    kind = METHODS[model.config.method]
    assert issubclass(kind, LabelAppending)
    check_graph(data, model.config.in_channels)
    nodes, everyone = training_nodes(data, model.config.classes), torch.arange(data.num_nodes)
    found = []
    for c in range(model.config.classes):
        labels = torch.full_like(everyone, c)
        labels[nodes] = data.y[nodes]
        x, edges = kind.view(model, data, everyone.to(nodes.device), labels.to(nodes.device))
        hypotheses = outputs(model, x, edges, [], depth)
        found.append(torch.stack([goodness(h[: data.num_nodes]) for h in hypotheses]).sum(0))
    return torch.stack(found, dim=1)


@torch.no_grad()
def link_scores(model: ForwardGNN, data: Data, layers: int | None = None) -> Tensor:
    """The probability of each edge in `data.edge_label_index`: the mean over layers of σ(s).

    Args:
        model: for links.
        data: as for `fit`.
        layers: as for `scores`.

    Raises:
        ValueError: as for `scores`.
    """
    depth = _depth(model, layers)
    if not model.config.method.startswith("link"):
        raise ValueError("This model classifies nodes: scores has its classes.")
    method = objective(model, data)
    assert isinstance(method, Links)
    edge = method.rows.columns["edge"]
    return _mean(
        outputs(model, data.x, data.edge_index, [], depth), lambda z: method.score(z, edge).sigmoid()
    )
