"""Graphons from graphs, by sorting and averaging, and graphs from graphons."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Generator

SURE = 2.33  # deviations of a normal variable that one of a hundred exceeds
HIDDEN = 0.5  # of what sorting finds, what it may leave; 0 and 0.9 or more on the synthetic graphons
LOOKED_AT = 10  # graphs of a set, at most, in which what is left is looked for
DENSE = 500  # nodes up to which all eigenvalues are the quicker way


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
    """The variance of degrees over that of a flat degree function; 0 without an edge, or with all.

    Of a graphon with degree function d(x), mean p and variance V, the degrees of n nodes have the expected
    variance (n - 2) (p (1 - p) + (n - 4) V), of which the first part is sampling noise.
    """
    matrix = adjacency(graph)
    n, degrees = matrix.shape[0], matrix.sum(axis=1)
    noise = _noise(n, degrees.mean() / max(1, n - 1))
    return float(degrees.var(ddof=1) / noise) if noise > 0 else 0.0


def _noise(n: int, density: float) -> float:
    return (n - 2) * density * (1 - density)


def degree_variation(graphs: Sequence[Any]) -> tuple[float, float, float]:
    """How flat the degree function of a set of graphs is.

    Returns:
        The coefficient of variation of the degree function, √V / p, noise taken off; the one of degrees that
        noise alone would give; and how many deviations V is above 0, by the deviation that the variance of a
        binomial's sample has (a graphon of blocks has a larger one).
    """
    found = []
    for graph in graphs:
        matrix = adjacency(graph)
        n = matrix.shape[0]
        p = float(matrix.sum() / max(1, n * (n - 1)))
        if n > 4 and (noise := _noise(n, p)) > 0:
            spread, q = degree_spread(graph), p * (1 - p)
            kurtosis = (1 - 6 * q) / ((n - 1) * q)
            variance = max(0.0, 2 / (n - 1) + kurtosis / n)
            found.append(((spread - 1) * q / (n - 4) / p**2, noise**0.5 / (n - 1) / p, spread - 1, variance))
    if not found:
        return 0.0, 0.0, 0.0
    square, chance, above, variance = np.mean(found, axis=0)
    return math.sqrt(max(0.0, square)), float(chance), float(above / math.sqrt(variance / len(found)))


def hidden_structure(graph: Any, resolution: int = 32) -> tuple[float, float]:
    """What sorting by degree finds in a graph, and what it leaves, as root mean squares over pairs of nodes.

    Where the degree function takes a value at two places, their nodes are mixed. Then the graph minus the
    means P of its blocks has an eigenvalue above the edge 2 max_i √(Σ_j P_ij (1 - P_ij)) of noise's. If θ is
    that of the structure alone, noise moves it to λ = θ + (edge / 2)² / θ; so θ / n is the size of the
    largest part that is left, and 0 below the edge (Lei 2016 tests blocks so; Féral and Péché 2007 have λ).
    """
    matrix = adjacency(graph)
    n = matrix.shape[0]
    r = min(resolution, smallest_usable(graph))
    part = np.argsort(np.argsort(-matrix.sum(axis=1), kind="stable")) * r // n
    sums = sparse.csr_array((np.ones(n), (part, np.arange(n))), shape=(r, n))
    counts = np.bincount(part, minlength=r).astype(float)
    pairs = np.outer(counts, counts) - np.diag(counts)
    P = (sums @ matrix @ sums.T).toarray() / np.maximum(pairs, 1)
    noise = P * (1 - P)
    edge = 2 * math.sqrt(max(0.0, float((noise @ counts - noise.diagonal()).max())))

    def residual(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        return matrix @ x - (P @ (sums @ x))[part] + P.diagonal()[part] * x

    if n <= DENSE:
        whole = matrix.toarray() - P[part][:, part] + np.diag(P.diagonal()[part])
        largest = float(np.abs(np.linalg.eigvalsh(whole)).max())
    else:
        start = np.random.default_rng(0).standard_normal(n)
        operator = LinearOperator((n, n), matvec=residual, dtype=float)
        largest = float(abs(eigsh(operator, 1, v0=start, tol=1e-3, return_eigenvectors=False)[0]))
    left = 0.0
    if largest > edge * (1 + n ** (-2 / 3)):  # the largest of noise is off the edge by so much
        left = (largest + math.sqrt(largest**2 - edge**2)) / 2 / n
    share = counts / n
    p = float(share @ P @ share)
    found = float(share @ (P - p) ** 2 @ share) - 2 * p * (1 - p) / n  # of which degrees' noise is a part
    return math.sqrt(max(0.0, found)), left


def estimate(graphs: Sequence[Any], resolution: int = 32, normalize: bool = False) -> np.ndarray:
    """The graphon of a set of graphs, the mean of their step functions; symmetric.

    Sorting by degree finds a graphon where its degree function is monotone, and no other (Chan and Airoldi
    2014). Both ways to fail are looked for: a degree function that is flat, by its variance, and one that
    has a value at several places, by the structure that is left.

    Args:
        graphs: as for `adjacency`.
        resolution: r.
        normalize: divide by the mean, so that only the shape counts. Graphons of sparse graphs are near 0,
            and so are all distances of them.

    Returns:
        (r, r) float64, in [0, 1] if not normalised.

    Raises:
        ValueError: no graph, a graph in place of a list, a resolution below 1, or no edge to normalise by.

    Warns:
        UserWarning: degrees that do not vary more than by chance; structure that sorting by them leaves,
            more than half of what it finds; or a resolution that is too fine for the smallest graph.
    """
    if hasattr(graphs, "edge_index") or hasattr(graphs, "adjacency") or getattr(graphs, "ndim", 0) == 2:
        raise ValueError("This is one graph; give a list of graphs, of one if there is no more.")
    if not len(graphs):
        raise ValueError("There is no graph to estimate from.")
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; it must be at least 1.")
    found = averaged(np.stack([pooled(graph, resolution) for graph in graphs]), normalize)
    if (usable := min(smallest_usable(graph) for graph in graphs)) < resolution // 2:
        warnings.warn(
            f"Resolution {resolution} is finer than the {usable} that the smallest of these graphs supports.",
            stacklevel=2,
        )
    _, chance, sure = degree_variation(graphs)
    few = graphs[:: -(-len(graphs) // LOOKED_AT)]
    seen, left = np.sqrt(np.mean(np.square([hidden_structure(g, resolution) for g in few]), axis=0))
    if sure < SURE:
        warnings.warn(
            f"The degrees of these graphs do not vary more than by chance ({chance:.1%}): sorting by them "
            "does not find the graphon, and a distance from it means little.",
            stacklevel=2,
        )
    elif left > HIDDEN * seen:
        warnings.warn(
            "Nodes of the same degree are joined to different nodes in these graphs: sorting by degree finds "
            f"structure of size {seen:.3f} and leaves {left:.3f}, and a distance is as wrong as that.",
            stacklevel=2,
        )
    return found


def averaged(steps: np.ndarray, normalize: bool) -> np.ndarray:
    """The mean of step functions (M, r, r), over its own mean if normalised."""
    found = steps.mean(axis=0)
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
