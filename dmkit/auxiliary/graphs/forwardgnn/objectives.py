"""What a method shows to a layer, and the layer's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ....data.dataset import Rows
from .labels import (
    add_class_nodes,
    append_labels,
    check_graph,
    training_nodes,
    undirected_edges,
    wrong_labels,
)

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from .model import ForwardGNN

Views = list[tuple[Tensor, Tensor]]


def goodness(h: Tensor) -> Tensor:
    """g of (3), a sum of squares over the last dimension, in training and in predictions."""
    return h.square().sum(-1)


def goodness_loss(true: Tensor, wrong: Tensor, theta: float) -> Tensor:
    """(3) of goodnesses of any shape, averaged; 2 ln 2 where all are θ."""
    return F.softplus(theta - true).mean() + F.softplus(wrong - theta).mean()


class Objective:
    """A method on a graph.

    Attributes:
        views: (inputs, edges) that the first layer is run on; inputs are not normalised yet.
        rows: what a batch is made of.
    """

    views: Views
    rows: Rows

    def loss(self, outputs: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Of a layer's outputs, one for each view."""
        raise NotImplementedError

    def following(self, outputs: list[Tensor]) -> list[Tensor]:
        """The next layer's inputs from a trained layer's outputs."""
        return outputs

    def to(self, device: torch.device) -> None:
        self.views = [(x.to(device), edges.to(device)) for x, edges in self.views]


class SingleForward(Objective):
    """(1): one graph, with class nodes that only training nodes are joined to."""

    def __init__(self, model: ForwardGNN, data: Data):
        nodes = training_nodes(data, model.config.classes)
        self.nodes, self.temperature = data.num_nodes, model.config.temperature
        edges = add_class_nodes(data.edge_index, self.nodes, nodes, data.y[nodes])
        self.views = [(torch.cat([data.x, model.virtual.to(data.x)]), edges)]
        self.rows = Rows(node=nodes, label=data.y[nodes])

    def logits(self, z: Tensor) -> Tensor:
        """(N, K) from a layer's output (N + K, d)."""
        return z[: self.nodes] @ z[self.nodes :].t() / self.temperature

    def loss(self, outputs: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        (z,) = outputs
        logits = z[batch["node"]] @ z[self.nodes :].t() / self.temperature
        return F.cross_entropy(logits, batch["label"])


class LabelAppending(Objective):
    """(3) with labels as features: the true ones, then each node's wrong ones in its own order."""

    def __init__(self, model: ForwardGNN, data: Data, generator: Generator | None = None):
        self.theta, classes = model.config.theta, model.config.classes
        nodes = training_nodes(data, classes)
        labels = data.y[nodes]
        candidates = torch.cat([labels[None], wrong_labels(labels, classes, generator)])
        self.views = [self.view(model, data, nodes, given) for given in candidates]
        self.rows = Rows(node=nodes)

    @staticmethod
    def view(model: ForwardGNN, data: Data, members: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The graph where members have these labels."""
        return append_labels(data.x, members, labels, model.config.classes), data.edge_index

    def loss(self, outputs: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        true, *wrong = (goodness(z[batch["node"]]) for z in outputs)
        return goodness_loss(true, torch.stack(wrong), self.theta)


class LabelledEdges(LabelAppending):
    """(3) with labels as edges to class nodes; the next layer reads what the true ones gave in all graphs."""

    @staticmethod
    def view(model: ForwardGNN, data: Data, members: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        edges = add_class_nodes(data.edge_index, data.num_nodes, members, labels)
        return torch.cat([data.x, model.virtual.to(data.x)]), edges

    def following(self, outputs: list[Tensor]) -> list[Tensor]:
        return [outputs[0]] * len(outputs)


class Links(Objective):
    """Cross-entropy of s_ij over `edge_label_index` and `edge_label`, as of PyG's `RandomLinkSplit`."""

    def __init__(self, model: ForwardGNN, data: Data):
        undirected_edges(data)
        self.theta = model.config.theta
        self.views = [(data.x, data.edge_index)]
        self.rows = Rows(edge=data.edge_label_index.t().contiguous(), label=data.edge_label.float())

    @staticmethod
    def products(z: Tensor, edge: Tensor) -> Tensor:
        """(n, d) of edges (n, 2); their sum over d is s_ij."""
        return z[edge[:, 0]] * z[edge[:, 1]]

    def score(self, z: Tensor, edge: Tensor) -> Tensor:
        """A logit for each edge."""
        return self.products(z, edge).sum(1)

    def loss(self, outputs: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.score(outputs[0], batch["edge"]), batch["label"])


class LinkGoodness(Links):
    """(3) with g = Σ (z_i z_j)²: drawn edges count as wrong."""

    def score(self, z: Tensor, edge: Tensor) -> Tensor:
        return goodness(self.products(z, edge)) - self.theta

    def loss(self, outputs: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        # Two means: over true edges and over drawn ones; a batch that lacks one kind goes without it.
        signs = 1 - 2 * batch["label"]
        terms = F.softplus(signs * self.score(outputs[0], batch["edge"]))
        kinds = [terms[signs == sign] for sign in (-1, 1)]
        return torch.stack([kind.mean() for kind in kinds if len(kind)]).sum()


METHODS: dict[str, Any] = {
    "sf": SingleForward,
    "ff-la": LabelAppending,
    "ff-vn": LabelledEdges,
    "link-ce": Links,
    "link-ff": LinkGoodness,
}


def objective(model: ForwardGNN, data: Data, generator: Generator | None = None) -> Objective:
    """The method of a model on a graph.

    Args:
        model: its config names the method.
        data: for nodes: `x`, `edge_index`, `y`, `train_mask`, and other masks, which must not overlap with
            it. For links: `x`, `edge_index` (both directions), `edge_label_index` and `edge_label`.
        generator: of the orders of wrong labels; PyTorch's own if not given.

    Raises:
        ValueError: a graph that does not fit; see `check_graph`, `training_nodes` and `undirected_edges`.
    """
    check_graph(data, model.config.in_channels)
    kind = METHODS[model.config.method]
    return kind(model, data, generator) if issubclass(kind, LabelAppending) else kind(model, data)
