"""How labels become a part of the graph: nodes that stand for classes, and features."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ....errors import unknown_name


def add_class_nodes(edge_index: Tensor, nodes: int, members: Tensor, labels: Tensor) -> Tensor:
    """Edges to and fro between each member and the node of its class, `nodes + label`, after the graph's own.

    Args:
        edge_index: (2, E) int64.
        nodes: N, of the graph itself.
        members: (n,) int64.
        labels: (n,) int64, their classes.
    """
    to = torch.stack([members, nodes + labels])
    return torch.cat([edge_index, to, to.flip(0)], dim=1)


def append_labels(x: Tensor, members: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Features (N, F + K): the class of each member as 0 and 1, and 1/K everywhere for all other nodes."""
    known = x.new_full((len(x), classes), 1 / classes)
    known[members] = torch.nn.functional.one_hot(labels, classes).to(x.dtype)
    return torch.cat([x, known], dim=1)


def wrong_labels(labels: Tensor, classes: int, generator: Generator | None = None) -> Tensor:
    """(K-1, n): all wrong classes of each of n nodes, in an order of its own."""
    keys = torch.rand(len(labels), classes - 1, generator=generator)
    return ((labels.cpu()[:, None] + 1 + keys.argsort(1)) % classes).t().to(labels.device)


def check_graph(data, in_channels: int) -> None:
    """Whether a network of `in_channels` features can run on the graph.

    Raises:
        ValueError: features of another width or that are not finite, or edges between nodes that it has not,
            some of which would otherwise be taken for the nodes of classes.
    """
    x, edges, nodes = data.x, data.edge_index, data.num_nodes
    if x.ndim != 2 or x.shape[1] != in_channels:
        raise ValueError(f"The nodes' features are {tuple(x.shape)}; the network takes (N, {in_channels}).")
    if not x.isfinite().all():
        raise ValueError("The nodes' features are not all finite.")
    if edges.layout != torch.strided:  # the adjacency matrix, which layers of torch_geometric take as well
        if tuple(edges.shape) != (nodes, nodes):
            raise ValueError(f"The adjacency matrix is {tuple(edges.shape)}, of a graph with {nodes} nodes.")
    elif edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        raise ValueError(
            f"Edges are between nodes {int(edges.min())} to {int(edges.max())}, of a graph with nodes 0 to "
            f"{nodes - 1}."
        )


def training_nodes(data, classes: int) -> Tensor:
    """The nodes of `data.train_mask`, after a graph to classify has been checked.

    Raises:
        ValueError: no mask or nothing in it, masks that overlap, labels outside 0 to K-1 among training
            nodes, or a class without a training node.
    """
    mask = getattr(data, "train_mask", None)
    if mask is None or mask.dtype != torch.bool or not mask.any():
        raise ValueError("The graph needs a train_mask of booleans with a training node or more.")
    for name in ("val_mask", "test_mask"):
        if getattr(data, name, None) is not None and (mask & data[name]).any():
            raise ValueError(f"train_mask and {name} overlap.")
    found = data.y[mask].unique().tolist()
    if found[0] < 0 or found[-1] >= classes:
        raise ValueError(
            f"Labels of training nodes are from {found[0]} to {found[-1]}, not 0 to {classes - 1}."
        )
    if absent := sorted(set(range(classes)) - set(found)):
        raise ValueError(f"Classes without a training node: {absent}.")
    return mask.nonzero().flatten()


def undirected_edges(data) -> None:
    """Checks a graph for links, whose scores know no direction.

    Raises:
        ValueError: an edge without its reverse.
    """
    from torch_geometric.utils import is_undirected

    if not is_undirected(data.edge_index, num_nodes=data.num_nodes):
        raise ValueError("Links are predicted in undirected graphs: every edge must be there both ways.")


def check_choice(method: str, top_down: str | None) -> None:
    """Whether there is such a method, and with these signals.

    Raises:
        ValueError: an unknown name, or signals that a method does not have.
    """
    allowed = {
        "sf": (None, "loss", "input"),
        "ff-la": (None,),
        "ff-vn": (None,),
        "link-ce": (None, "input"),
        "link-ff": (None,),
    }
    if method not in allowed:
        raise unknown_name("method", method, allowed)
    if top_down not in allowed[method]:
        raise ValueError(f"{method} has no top_down {top_down!r}; it takes {allowed[method]}.")
