"""What pre-training was worth: a network learns links of some graphs, then classes of nodes of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ....data.graphs import graph_data, split_nodes
from ....training.arguments import TrainingArguments
from ..forwardgnn.backprop import Backprop, fit_backprop
from .graphons import adjacency

if TYPE_CHECKING:
    from torch_geometric.data import Data


def structure(graph: Any) -> np.ndarray:
    """(n, 4): 1, log degree, log mean degree of neighbours, clustering; nothing that is not structure."""
    a = adjacency(graph)
    degree = a.sum(axis=1)
    of_neighbours = (a @ degree) / degree.clip(1)
    triangles = ((a @ a) * a).sum(axis=1)
    pairs = (degree * (degree - 1)).clip(1)
    return np.stack(
        [np.ones_like(degree), np.log1p(degree), np.log1p(of_neighbours), triangles / pairs], axis=1
    )


def joined(graphs: Sequence[Any], labels: Sequence[np.ndarray], seed: int = 0) -> Data:
    """Graphs side by side in one `Data`, with `edge_label_index`: every edge, and for each a pair of nodes of
    its graph drawn at random that has none.

    Args:
        graphs: as for `adjacency`.
        labels: of the nodes of each, int.
        seed: of the pairs.
    """
    generator = np.random.default_rng(seed)
    edges, pairs, start = [], [], 0
    for graph in graphs:
        a = adjacency(graph).tocoo()
        n = a.shape[0]
        edges.append(np.stack([a.row, a.col]) + start)
        drawn = generator.integers(n, size=(2, 4 * len(a.row)))
        absent = (np.asarray(a.todense())[drawn[0], drawn[1]] == 0) & (drawn[0] != drawn[1])
        pairs.append(drawn[:, absent][:, : len(a.row)] + start)
        start += n
    true, drawn = np.concatenate(edges, axis=1), np.concatenate(pairs, axis=1)
    data = graph_data(
        torch.from_numpy(np.concatenate([structure(graph) for graph in graphs])).float(),
        torch.from_numpy(true).long(),
        torch.from_numpy(np.concatenate(labels)).long(),
    )
    data.edge_label_index = torch.from_numpy(np.concatenate([true, drawn], axis=1)).long()
    data.edge_label = torch.cat([torch.ones(true.shape[1]), torch.zeros(drawn.shape[1])])
    return data


def pretrain(data: Data, width: int, training: TrainingArguments) -> Backprop:
    """Two layers that tell links from other pairs."""
    torch.manual_seed(training.seed)
    return fit_backprop(Backprop(data.num_features, width, width, 2), data, training)


def finetune(
    start: Backprop | None, data: Data, width: int, training: TrainingArguments, share: float = 0.1
) -> float:
    """The test accuracy of three layers that learn classes, from pre-trained ones or from none.

    Args:
        start: what `pretrain` returned; None for random layers.
        data: its `y` is learned.
        width: that of `start`.
        training: its seed is that of the split, too.
        share: of the nodes that are learned from; all others are to test on.
    """
    nodes = split_nodes(data, training.seed, train=share, validation=0.0)
    del nodes.edge_label_index, nodes.edge_label  # nodes are learned here
    torch.manual_seed(training.seed)
    model = Backprop(data.num_features, int(data.y.max()) + 1, width, 3)
    if start is not None:
        for own, given in zip(model.convs, start.convs, strict=False):
            own.load_state_dict(given.state_dict())
    fit_backprop(model, nodes, training)
    with torch.no_grad():
        found = model(nodes.x, nodes.edge_index).argmax(1)
    return float((found == nodes.y)[nodes.test_mask].double().mean())
