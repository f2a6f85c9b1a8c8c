"""What the causal graph alone says: which variables move with the mutable ones, and which condition holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx

Node: TypeAlias = Any  # hashable; with data, the name of a column


@dataclass(frozen=True)
class Components:
    """The parts of a graph around a target Y and mutable variables X_M.

    Attributes:
        graph: the DAG, without the environment's node.
        target: Y.
        mutable: M, in topological order.
        stable: S, all others, in topological order.
        mutable_children: M ∩ Ch(Y).
        after: K, the descendants of those that are not among them.
        moved: De(M) in the graph without arrows into M: what changes when M is set. In topological order,
            without M.
        full_set_is_optimal: Ch(Y) ∩ K is empty.
    """

    graph: nx.DiGraph
    target: Node
    mutable: tuple[Node, ...]
    stable: tuple[Node, ...]
    mutable_children: frozenset[Node]
    after: frozenset[Node]
    moved: tuple[Node, ...]
    full_set_is_optimal: bool

    def parents(self, node: Node) -> tuple[Node, ...]:
        """In topological order."""
        order = list(nx.topological_sort(self.graph))
        return tuple(sorted(self.graph.predecessors(node), key=order.index))

    def informative(self, subset: frozenset[Node]) -> list[Node]:
        """The mutable variables that E[Y | x_S', do(x_M)] depends on: those that S' and the others do not
        separate from Y once no arrow leads into M.
        """
        cut = self.graph.copy()
        cut.remove_edges_from([edge for edge in self.graph.edges if edge[1] in self.mutable])
        return [
            m
            for m in self.mutable
            if not nx.is_d_separator(cut, {self.target}, {m}, (subset | set(self.mutable)) - {m})
        ]

    @property
    def stable_graph(self) -> nx.DiGraph:
        """G_S, on Y and the stable variables: setting X_M makes its nodes constants."""
        return self.graph.subgraph([self.target, *self.stable]).copy()


def graphical_condition(graph: nx.DiGraph, target: Node, mutable: Iterable[Node]) -> Components:
    """The parts of the graph, and whether the full stable set has the least worst-case risk.

    It has if Y has no arrow into a descendant of its own mutable children.

    Raises:
        ValueError: as `checked`; a target or mutable variable that is no node, or a target that is mutable.
    """
    graph, mutable = checked(graph), list(dict.fromkeys(mutable))
    for node in (target, *mutable):
        if node not in graph:
            raise ValueError(f"{node!r} is not a node of the graph; it has {', '.join(map(str, graph))}.")
    if target in mutable:
        raise ValueError(f"the target {target!r} cannot be mutable: no predictor of it would be stable.")
    order = list(nx.topological_sort(graph))
    children = set(graph.successors(target))
    mutable_children = frozenset(children.intersection(mutable))
    after = frozenset().union(*(nx.descendants(graph, m) for m in mutable_children)) - mutable_children
    cut = graph.copy()
    cut.remove_edges_from([edge for edge in graph.edges if edge[1] in mutable])
    moved = set().union(*(nx.descendants(cut, m) for m in mutable)) - set(mutable)
    return Components(
        graph=graph,
        target=target,
        mutable=tuple(node for node in order if node in mutable),
        stable=tuple(node for node in order if node not in mutable and node != target),
        mutable_children=mutable_children,
        after=after,
        moved=tuple(node for node in order if node in moved),
        full_set_is_optimal=not children & after,
    )


def without_environment(graph: nx.DiGraph, environment: Node) -> tuple[nx.DiGraph, list[Node]]:
    """The graph without the environment's node, and its neighbours there: the mutable variables.

    Raises:
        ValueError: no such node.
    """
    if environment not in graph:
        raise ValueError(f"{environment!r} is not a node of the graph; it has {', '.join(map(str, graph))}.")
    beside = set(graph.successors(environment)) | set(graph.predecessors(environment))
    rest = graph.copy()
    rest.remove_node(environment)
    return rest, [node for node in rest if node in beside]


def checked(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph, if it is a DAG.

    Raises:
        TypeError: not a `networkx.DiGraph`.
        ValueError: undirected edges (both arrows, as a learned graph has them), or a cycle, which it names.
    """
    if not isinstance(graph, nx.DiGraph):
        raise TypeError(f"the graph must be a networkx.DiGraph, not {type(graph).__name__}.")
    if both := undirected(graph):
        edges = ", ".join(f"{a} - {b}" for a, b in both)
        raise ValueError(
            f"the graph has undirected edges: {edges}. Orient them, or take `first_extension(graph)`."
        )
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(str(a) for a, _ in nx.find_cycle(graph))
        raise ValueError(f"the graph has a cycle: {cycle}.")
    return graph


def undirected(graph: nx.DiGraph) -> list[tuple[Node, Node]]:
    """Edges with both arrows, each once."""
    place = {node: k for k, node in enumerate(graph)}
    return [(a, b) for a, b in graph.edges if graph.has_edge(b, a) and place[a] < place[b]]


def first_extension(graph: nx.DiGraph) -> nx.DiGraph:
    """A DAG with the graph's arrows, its undirected edges oriented without a new collider (Dor and Tarsi,
    1992).

    One of the DAGs that a learned graph stands for; the others explain the data as well.

    Raises:
        ValueError: there is none.
    """
    rest, found = graph.copy(), nx.DiGraph()
    found.add_nodes_from(graph)
    while len(rest):
        sink = next((node for node in rest if _can_be_last(rest, node)), None)
        if sink is None:
            raise ValueError(
                "the graph's undirected edges cannot be oriented without a cycle or a new collider."
            )
        found.add_edges_from((other, sink) for other in rest.predecessors(sink))
        rest.remove_node(sink)
    return found


def _can_be_last(graph: nx.DiGraph, node: Node) -> bool:
    """No arrow out of it; and each undirected neighbour is adjacent to all others around it."""
    below, around = set(graph.successors(node)), set(graph.predecessors(node))
    if below - around:
        return False
    pairs = ((a, b) for a in below for b in around - {a})
    return all(graph.has_edge(a, b) or graph.has_edge(b, a) for a, b in pairs)
