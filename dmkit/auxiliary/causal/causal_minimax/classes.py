"""Subsets of the stable variables that give the same predictor: one of each class is enough to try.

S_i ~ S_j if there is a B ⊆ S_i ∩ S_j with Y ⟂ (S_i ∪ S_j) \\ B | B in G_S; then f_{S_i} = f_{S_j}. The Markov
boundary of Y inside S', B(S') = {x ∈ S' : x not d-separated from Y by S' \\ {x}}, is the smallest member of
its class, and two subsets are equivalent just if they have the same one. A class is all B ∪ T, T ⊆ F.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import networkx as nx

from .graphs import Components, Node


@dataclass(frozen=True)
class EquivalenceClass:
    """All subsets `minimal` ∪ T with T ⊆ `free`.

    Attributes:
        minimal: B, its smallest member.
        free: F, what may be added without changing the predictor.
    """

    minimal: frozenset[Node]
    free: frozenset[Node]

    @property
    def size(self) -> int:
        """How many subsets it has."""
        return 2 ** len(self.free)

    def members(self) -> Iterator[frozenset[Node]]:
        return (self.minimal | added for added in subsets(self.free))


class Separation:
    """d-separation from the target in a DAG, with a count of the tests.

    Attributes:
        tests: how many were made.
        up: each node's ancestors, and itself.
    """

    def __init__(self, graph: nx.DiGraph, target: Node):
        self.graph, self.target, self.tests = graph, target, 0
        self.up = {node: frozenset(nx.ancestors(graph, node) | {node}) for node in graph}

    def separated(self, node: Node, given: Iterable[Node]) -> bool:
        self.tests += 1
        return bool(nx.is_d_separator(self.graph, {self.target}, {node}, set(given)))

    def boundary(self, subset: frozenset[Node]) -> frozenset[Node]:
        """B(S'), the Markov boundary of the target inside a subset."""
        return frozenset(node for node in subset if not self.separated(node, subset - {node}))


def equivalence_classes(
    components: Components, *, max_classes: int = 4096, separation: Separation | None = None
) -> list[EquivalenceClass]:
    """All classes, without a visit to all 2^d subsets.

    Given that the variables A are in the subset and L are not, the variables adjacent to Y in the mixed
    graph of G_S with L unobserved and A selected are those that no set of the others separates from it. Each
    of them is in or out; when none is left, the rest is free.

    Args:
        components: of `graphical_condition`.
        max_classes: the most that may be found.
        separation: to count tests with.

    Raises:
        ValueError: more classes than `max_classes`.
    """
    test = separation or Separation(components.stable_graph, components.target)
    everything = frozenset(components.stable)
    found: list[EquivalenceClass] = []
    waiting: list[tuple[frozenset[Node], frozenset[Node]]] = [(frozenset(), frozenset())]
    while waiting:
        left_out, taken = waiting.pop()
        adjacent = _adjacent(test, everything, left_out, taken)
        if not adjacent:
            found.append(EquivalenceClass(taken, everything - left_out - taken))
            if len(found) > max_classes:
                raise ValueError(
                    f"there are more than max_classes={max_classes} classes; raise it, or leave out of the "
                    "graph what surely does not matter."
                )
        elif 2 ** len(adjacent) > max_classes:  # each of these subsets leads to a class, at least
            raise ValueError(
                f"there are 2^{len(adjacent)} classes or more, beyond max_classes={max_classes}; raise it, "
                "or leave out of the graph what surely does not matter."
            )
        else:
            waiting += [(left_out | (adjacent - chosen), taken | chosen) for chosen in subsets(adjacent)]
    return sorted(found, key=lambda one: (len(one.minimal), sorted(map(str, one.minimal))))


def exhaustive_classes(
    components: Components, *, separation: Separation | None = None
) -> list[EquivalenceClass]:
    """The same by the Markov boundary of each of the 2^d subsets: what the other is checked against."""
    test = separation or Separation(components.stable_graph, components.target)
    union: dict[frozenset[Node], frozenset[Node]] = {}
    for subset in subsets(components.stable):
        minimal = test.boundary(subset)
        union[minimal] = union.get(minimal, frozenset()) | subset
    found = [EquivalenceClass(minimal, whole - minimal) for minimal, whole in union.items()]
    return sorted(found, key=lambda one: (len(one.minimal), sorted(map(str, one.minimal))))


def full_class(components: Components) -> EquivalenceClass:
    """The class of the full stable set."""
    everything = frozenset(components.stable)
    minimal = Separation(components.stable_graph, components.target).boundary(everything)
    return EquivalenceClass(minimal, everything - minimal)


def subsets(nodes: Iterable[Node]) -> Iterator[frozenset[Node]]:
    """All of them, the small ones first."""
    pool = sorted(nodes, key=str)
    return (frozenset(some) for size in range(len(pool) + 1) for some in combinations(pool, size))


def _adjacent(
    test: Separation, everything: frozenset[Node], left_out: frozenset[Node], taken: frozenset[Node]
) -> frozenset[Node]:
    """x is adjacent to Y in the mixed graph unless the observed ancestors of x, Y and A separate them."""
    up, target = test.up, test.target
    common = up[target].union(*(up[node] for node in taken))
    observed = everything - left_out
    return frozenset(
        node
        for node in observed - taken
        if not test.separated(node, (((common | up[node]) & observed) - {node, target}) | taken)
    )
