"""Graphs for node classification and link prediction, as `torch_geometric.data.Data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MissingExtraError
from .digits import digit_tensors

if TYPE_CHECKING:
    from torch_geometric.data import Data


def graph_data(x: Tensor, edge_index: Tensor, y: Tensor) -> Data:
    """A graph of PyG's.

    Args:
        x: (N, F) features.
        edge_index: (2, E) int64, both directions of an undirected edge.
        y: (N,) int64 labels; -1 where there is none.

    Raises:
        MissingExtraError: `torch_geometric` is not installed.
    """
    try:
        from torch_geometric.data import Data
    except ImportError:
        raise MissingExtraError("torch_geometric", "graphs") from None
    return Data(x=x, edge_index=edge_index, y=y)


def undirected(pairs: Tensor, nodes: int) -> Tensor:
    """Both directions of each edge once, in order, without loops: (2, any) -> (2, E) int64."""
    a, b = torch.cat([pairs, pairs.flip(0)], dim=1)
    codes = (a * nodes + b)[a != b].unique()
    return torch.stack([codes // nodes, codes % nodes])


def digit_graph(neighbours: int = 8, root: Path | None = None) -> Data:
    """The 1,797 digits of scikit-learn, joined to those nearest to each in pixels, made symmetric.

    Args:
        neighbours: of each digit, by Euclidean distance.
        root: folder of fetched data, as for `dmkit.data.load`.

    Returns:
        `x` (1797, 64) in [0, 1], `edge_index`, `y`.

    Raises:
        MissingDataError, MissingExtraError: scikit-learn or `torch_geometric` is not installed.
        ValueError: fewer than one neighbour, or more than there are.
    """
    images, labels = digit_tensors(root=root)
    x = images.flatten(1)
    if not 1 <= neighbours < len(x):
        raise ValueError(f"neighbours is {neighbours}; it must be from 1 to {len(x) - 1}.")
    nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(neighbours, largest=False).indices
    own = torch.arange(len(x)).repeat_interleave(neighbours)
    return graph_data(x, undirected(torch.stack([own, nearest.flatten()]), len(x)), labels)


def split_nodes(data: Data, seed: int, train: float = 0.64, validation: float = 0.16) -> Data:
    """The graph with `train_mask`, `val_mask` and `test_mask` over its labelled nodes, drawn at random.

    Args:
        data: a graph with `y`, below 0 where a node has no label.
        seed: of the split.
        train, validation: shares of the labelled nodes; the rest is to test on.

    Raises:
        ValueError: shares that are not positive or leave nothing to test on.
    """
    if not (train > 0 and validation >= 0 and train + validation < 1):
        raise ValueError(f"Shares {train} and {validation} leave no nodes to train or to test on.")
    labelled = (data.y >= 0).nonzero().flatten()
    order = labelled[torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))]
    ends = round(train * len(order)), round((train + validation) * len(order))
    data = data.clone()
    for name, part in zip(("train", "val", "test"), order.tensor_split(ends), strict=True):
        mask = torch.zeros(len(data.y), dtype=torch.bool)
        mask[part] = True
        data[f"{name}_mask"] = mask
    return data
