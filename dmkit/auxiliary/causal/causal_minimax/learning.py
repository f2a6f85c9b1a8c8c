"""A graph from data of several environments, by causal-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np

from ....errors import MissingExtraError, unknown_name
from .regressions import read_column

TESTS = ("fisherz", "kci")


def learn_graph(
    data: Mapping[str, Any], environment: str = "E", *, alpha: float = 0.05, test: str = "kci"
) -> nx.DiGraph:
    """CD-NOD (Zhang et al., 2017): the graph's arrows, and which mechanisms differ between environments.

    Args:
        data: columns of numbers; all are nodes.
        environment: the column that says where a row comes from, by numbers or names. Its neighbours are
            mutable: see `without_environment`.
        alpha: of the tests of independence.
        test: "kci", by kernels, whose time grows with n³; or "fisherz", for linear mechanisms.

    Returns:
        The graph. Edges that the data cannot orient have both arrows: see `first_extension`.

    Raises:
        ValueError: no such column, one that is not finite numbers or is constant, one environment only, an
            unknown test, or a common cause that is not in the data.
        MissingExtraError: causal-learn is not installed.
    """
    if test not in TESTS:
        raise unknown_name("test", test, TESTS)
    if environment not in data:
        raise unknown_name("environment column", environment, map(str, data))
    names = [*(name for name in data if name != environment), environment]  # where CD-NOD has it
    places, codes = np.unique(np.asarray(data[environment]), return_inverse=True)
    if len(places) < 2:
        raise ValueError(f"a graph is learned from two or more environments; {environment!r} has one.")
    columns = [read_column(name, data[name]).numpy() for name in names[:-1]]
    for name, column in zip(names, columns, strict=False):
        if np.ptp(column) == 0:
            raise ValueError(f"column {name!r} is constant: no test of independence can be made of it.")
    by_number = np.issubdtype(places.dtype, np.number)
    columns.append(places[codes].astype(np.float64) if by_number else codes.astype(np.float64))
    try:
        from causallearn.search.ConstraintBased.CDNOD import cdnod
    except ImportError as error:
        raise MissingExtraError("causal-learn", "causal") from error
    table = np.stack(columns[:-1], axis=1)
    found = cdnod(table, columns[-1][:, None], alpha, test, show_progress=False).G.graph
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    # found[i, j] = -1 and found[j, i] = 1: i -> j; both -1: i - j; both 1: neither is above the other.
    for i, j in zip(*np.nonzero(found), strict=True):
        if found[i, j] == -1:
            graph.add_edge(names[i], names[j])
        elif found[j, i] == 1:
            raise ValueError(f"{names[i]} and {names[j]} have a common cause that is not in the data.")
    return graph
