"""Graphons from graphs, by sorting and averaging, and graphs from graphons."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Generator

FLAT = 1.5  # how many times a binomial's variance of degrees is to be exceeded


def adjacency(graph: Any) -> sparse.csr_array:
    """A graph's adjacency matrix.

    Args:
        graph: an array (n, n), a scipy sparse one, a networkx graph, or a `torch_geometric` `Data`.

    Raises:
        ValueError: no square, no node, a direction, or numbers outside [0, 1].
    """
    if hasattr(graph, "edge_index"):
        i, j = graph.edge_index.cpu().numpy()
        matrix = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(graph.num_nodes,) * 2).tocsr()
        matrix.data[:] = 1.0  # an edge that is there twice is one
    elif hasattr(graph, "adjacency"):
        import networkx

        matrix = sparse.csr_array(networkx.to_scipy_sparse_array(graph, weight=None, dtype=float))
    else:
        matrix = sparse.csr_array(graph, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        raise ValueError(f"An adjacency matrix is square and not empty, not {matrix.shape}.")
    if matrix.nnz and not (matrix.data.min() >= 0 and matrix.data.max() <= 1):
        raise ValueError("An adjacency matrix holds numbers from 0 to 1.")
    if abs(matrix - matrix.T).max() > 1e-12:
        raise ValueError("This graph has directions; its adjacency matrix must be symmetric.")
    return matrix


def overlap(rows: int, columns: int) -> np.ndarray:
    """(rows, columns): how much of [0, 1] row a, one of equal parts, and column i have in common."""
    a, i = np.arange(rows)[:, None], np.arange(columns)
    return (np.minimum((a + 1) / rows, (i + 1) / columns) - np.maximum(a / rows, i / columns)).clip(0)


def pooled(graph: Any, resolution: int) -> np.ndarray:
    """A graph's step function (r, r): nodes by falling degree, averaged over r equal parts of them.

    Every graph is brought to the same r, of whatever size it is; nothing is padded.
    """
    matrix = adjacency(graph)
    order = np.argsort(-matrix.sum(axis=1), kind="stable")
    parts = sparse.csr_array(overlap(resolution, matrix.shape[0])[:, order.argsort()] * resolution)
    return (parts @ matrix @ parts.T).toarray()


def smallest_usable(graph: Any) -> int:
    """k = n / h, of blocks of h = log2 n + 1 nodes, below which a block is mostly noise."""
    n = adjacency(graph).shape[0]
    return max(1, n // math.floor(math.log2(n) + 1))


def degree_spread(graph: Any) -> float:
    """The variance of degrees over that of equal nodes by chance; 0 without an edge, or with all."""
    matrix = adjacency(graph)
    n = matrix.shape[0]
    degrees = matrix.sum(axis=1)
    density = degrees.mean() / max(1, n - 1)
    binomial = (n - 1) * density * (1 - density)
    return float(degrees.var() / binomial) if binomial > 0 else 0.0


def estimate(graphs: Sequence[Any], resolution: int = 32, normalize: bool = False) -> np.ndarray:
    """The graphon of a set of graphs, the mean of their step functions; symmetric.

    Sorting by degree finds a graphon where its degree function is monotone, and no other (Chan and Airoldi
    2014).

    Args:
        graphs: as for `adjacency`.
        resolution: r.
        normalize: divide by the mean, so that only the shape counts. Graphons of sparse graphs are near 0,
            and so are all distances of them.

    Returns:
        (r, r) float64, in [0, 1] if not normalised.

    Raises:
        ValueError: no graph, a resolution below 1, or no edge to normalise by.

    Warns:
        UserWarning: degrees that vary hardly more than by chance, so that their order says nothing; or a
            resolution that is too fine for the smallest graph.
    """
    if not len(graphs):
        raise ValueError("There is no graph to estimate from.")
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; it must be at least 1.")
    if (usable := min(smallest_usable(graph) for graph in graphs)) < resolution // 2:
        warnings.warn(
            f"resolution {resolution} is fine for the smallest of these graphs, for which {usable} would do.",
            stacklevel=2,
        )
    if (spread := float(np.mean([degree_spread(graph) for graph in graphs]))) < FLAT:
        warnings.warn(
            f"The degrees of these graphs vary {spread:.2f} times as much as by chance: sorting by them does "
            "not find the graphon, and a distance from it means little.",
            stacklevel=2,
        )
    found = np.mean([pooled(graph, resolution) for graph in graphs], axis=0)
    if normalize:
        if not found.mean() > 0:
            raise ValueError("Graphs without an edge cannot be normalised.")
        found = found / found.mean()
    return found


def graphon(number: int, resolution: int = 32) -> np.ndarray:
    """One of 13 synthetic graphons (Han et al. 2022, arXiv 2202.07179); 0 to 8 have monotone degrees.

    Raises:
        ValueError: a number that there is not.
    """
    u = np.arange(1, resolution + 1) / resolution
    v = u[:, None]
    U, V = u[::-1], v[::-1]
    half = np.arange(resolution) < resolution // 2
    same = half == half[:, None]
    rules = (
        lambda: U * V,
        lambda: np.exp(-(u**0.7 + v**0.7)),
        lambda: (U**2 + V**2 + U**0.5 + V**0.5) / 4,
        lambda: (U + V) / 2,
        lambda: 1 / (1 + np.exp(-2 * (U**2 + V**2))),
        lambda: 1 / (1 + np.exp(-(np.maximum(U, V) ** 2 + np.minimum(U, V) ** 4))),
        lambda: np.exp(-(np.maximum(u, v) ** 0.75)),
        lambda: np.exp(-(np.minimum(u, v) + u**0.5 + v**0.5) / 2),
        lambda: np.log1p(np.maximum(U, V) / 2),
        lambda: np.abs(u - v),
        lambda: 1 - np.abs(u - v),
        lambda: 0.8 * same,
        lambda: 0.8 * ~same,
    )
    if not 0 <= number < len(rules):
        raise ValueError(f"Graphons are numbered 0 to {len(rules) - 1}, not {number}.")
    return np.asarray(rules[number](), dtype=float)


def sample(W: np.ndarray, nodes: int, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """A graph of a graphon: undirected, without loops.

    Args:
        W: (r, r) in [0, 1].
        nodes: n.
        generator: of places and edges.

    Returns:
        The adjacency matrix (n, n) of zeros and ones, and the nodes' places (n,) in [0, 1).
    """
    u = torch.rand(nodes, generator=generator, dtype=torch.float64).numpy()
    part = (u * len(W)).astype(int)
    drawn = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64).numpy()
    upper = np.triu(drawn < W[part][:, part], 1).astype(float)
    return upper + upper.T, u


def ego_graphs(graph: Any, nodes: Sequence[int], hops: int = 2, most: int = 1000) -> list[sparse.csr_array]:
    """What lies within some hops of each node, as a graph of its own; those of more than `most` nodes are
    left out. Tasks of nodes in one large graph are compared by them.
    """
    matrix, found = adjacency(graph), []
    for node in nodes:
        near = np.array([node])
        for _ in range(hops):
            near = np.union1d(near, matrix[near].indices)
        if 1 < len(near) <= most:
            found.append(matrix[near][:, near])
    return found
