"""Causal models of variables with few values: every figure exact, worst cases too.

A stable predictor f_{S'}(x_{S'}, x_M) = E[Y | x_{S'}, do(x_M)] has risk R(S', h) = E[(Y - f)²] where mutable
variables follow mechanisms h. The risk is linear in each mechanism, so that a function of the parents, rather
than a distribution, is among the worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from string import ascii_letters

import networkx as nx
import torch
from torch import Tensor

from .graphs import Components, Node, graphical_condition


@dataclass(frozen=True)
class FiniteModel:
    """A Bayesian network.

    Attributes:
        components: of the graph, at most 52 nodes: `einsum` has a letter for each.
        values: what each node's states are worth; the target's enter the risk.
        tables: for each node P(node | parents), an axis a parent in the order of `components.parents(node)`,
            the node's own last. A mutable node's is that of the training environment, and may be left out.
    """

    components: Components
    values: Mapping[Node, Tensor]
    tables: Mapping[Node, Tensor]

    @classmethod
    def of(
        cls,
        graph: nx.DiGraph,
        target: Node,
        mutable: Iterable[Node],
        tables: Mapping[Node, object],
        values: Mapping[Node, Sequence[float]] | None = None,
    ) -> FiniteModel:
        """Checks tables, and gives states the values 0, 1, … where none are given.

        Raises:
            ValueError: as `graphical_condition`; more than 52 nodes; a missing table, one that does not sum
                to 1, or of another shape.
        """
        components = graphical_condition(graph, target, mutable)
        if len(components.graph) > len(ascii_letters):
            raise ValueError(f"at most {len(ascii_letters)} nodes, got {len(components.graph)}.")
        made = {node: torch.as_tensor(table, dtype=torch.float64) for node, table in tables.items()}
        given = values or {}
        worth: dict[Node, Tensor] = {}
        for node in components.graph:
            if node not in made and not (node in components.mutable and node in given):
                raise ValueError(f"{node!r} has no table; it needs P({node} | {components.parents(node)}).")
            count = made[node].shape[-1] if node in made else len(given[node])
            worth[node] = torch.as_tensor(given.get(node, range(count)), dtype=torch.float64)
        for node, table in made.items():
            shape = tuple(len(worth[n]) for n in (*components.parents(node), node))
            if tuple(table.shape) != shape:
                raise ValueError(
                    f"the table of {node!r} must have the shape {shape}, got {tuple(table.shape)}."
                )
            if (table < 0).any() or not torch.allclose(table.sum(-1), torch.ones(()).double()):
                raise ValueError(
                    f"the table of {node!r} must hold probabilities that sum to 1 along its last axis."
                )
        return cls(components, worth, made)

    @cached_property
    def _letter(self) -> dict[Node, str]:
        return dict(zip(self.components.graph, ascii_letters, strict=False))

    def _axes(self, nodes: Iterable[Node]) -> str:
        return "".join(self._letter[node] for node in nodes)

    def _family(self, node: Node) -> tuple[Node, ...]:
        return (*self.components.parents(node), node)

    def expectation(
        self,
        factors: Mapping[Node, Tensor],
        *extra: tuple[tuple[Node, ...], Tensor],
        over: tuple[Node, ...] = (),
    ) -> Tensor:
        """Σ over all nodes but those in `over` of the product of the nodes' tables and extra factors."""
        parts = [(self._family(node), table) for node, table in factors.items()]
        parts += list(extra)
        # A node that no factor has, a mutable one, still needs its axis.
        parts += [((node,), torch.ones(len(self.values[node])).double()) for node in over]
        spelled = ",".join(self._axes(nodes) for nodes, _ in parts)
        return torch.einsum(f"{spelled}->{self._axes(over)}", *(table for _, table in parts))

    def predictor(self, subset: Iterable[Node]) -> tuple[tuple[Node, ...], Tensor]:
        """f_{S'}: its arguments S' and M in topological order, and E[Y | x_{S'}, do(x_M)]; 0 where P = 0.

        Raises:
            ValueError: a node that is not stable.
        """
        rest = {node: table for node, table in self.tables.items() if node not in self.components.mutable}
        return self._mean(subset, rest)

    def risk(
        self,
        subset: Iterable[Node] | None,
        mechanisms: Mapping[Node, Tensor] | None = None,
        predictor: tuple[tuple[Node, ...], Tensor] | None = None,
    ) -> Tensor:
        """E[(Y - f)²] under mechanisms of the mutable variables; the training environment's by default.

        Args:
            subset: S' of a stable predictor; None with a `predictor` of one's own.
            mechanisms: P(m | parents) for each mutable m.
            predictor: arguments and values of another predictor.
        """
        factors = {**self.tables, **(mechanisms or {})}
        return self.expectation(factors, self._error(subset, predictor))

    def regression(
        self, subset: Iterable[Node], mechanisms: Mapping[Node, Tensor] | None = None
    ) -> tuple[tuple[Node, ...], Tensor]:
        """E[Y | x_{S'}, x_M] as observed under mechanisms: least squares, which is not stable."""
        return self._mean(subset, {**self.tables, **(mechanisms or {})})

    def _mean(
        self, subset: Iterable[Node], factors: Mapping[Node, Tensor]
    ) -> tuple[tuple[Node, ...], Tensor]:
        inside, target = set(subset), self.components.target
        if unknown := inside - set(self.components.stable):
            raise ValueError(f"{sorted(map(str, unknown))} are not stable variables.")
        arguments = tuple(node for node in self.components.stable if node in inside) + self.components.mutable
        weight = self.expectation(factors, over=arguments)
        mean = self.expectation(factors, ((target,), self.values[target]), over=arguments)
        return arguments, torch.where(weight > 0, mean / weight.clamp_min(1e-300), 0)

    def worst_case(
        self, subset: Iterable[Node] | None, predictor: tuple[tuple[Node, ...], Tensor] | None = None
    ) -> tuple[float, dict[Node, Tensor]]:
        """R(S') and the worst mechanisms, by all functions of all mutable variables but one.

        For that one, with the most functions, the risk is Σ h(m | pa) c(pa, m), and the worst m is found for
        each pa alone.
        """
        mutable = sorted(self.components.mutable, key=lambda m: self._shape(m).numel())
        error = self._error(subset, predictor)
        fixed = {node: table for node, table in self.tables.items() if node not in mutable}
        if not mutable:
            return float(self.expectation(fixed, error)), {}
        *others, last = mutable
        best: tuple[float, dict[Node, Tensor]] = (-1.0, {})
        for maps in product(*(list(self.functions(node)) for node in others)):
            chosen = dict(zip(others, maps, strict=True))
            cost = self.expectation({**fixed, **chosen}, error, over=self._family(last))
            risk = float(cost.amax(-1).sum())
            if risk > best[0]:
                size = len(self.values[last])
                best = risk, {**chosen, last: torch.eye(size).double()[cost.argmax(-1)]}
        return best

    def functions(self, node: Node) -> Iterator[Tensor]:
        """All functions of a mutable variable's parents, as tables of zeros and ones."""
        *cells, size = self._shape(node)
        count = int(torch.tensor(cells).prod()) if cells else 1
        for states in product(range(size), repeat=count):
            yield torch.eye(size).double()[list(states)].reshape(*cells, size)

    def ascend(
        self, subset: Iterable[Node], *, generator: torch.Generator, restarts: int = 8, steps: int = 300
    ) -> tuple[float, dict[Node, Tensor]]:
        """R(S') by gradient ascent over mechanisms softmax(θ): what takes the place of `worst_case` where
        there are too many functions. The best of the restarts, rounded to functions.
        """
        best: tuple[float, dict[Node, Tensor]] = (-1.0, {})
        error = self._error(subset, None)
        for _ in range(restarts):
            logits = {
                node: torch.randn(
                    self._shape(node), generator=generator, dtype=torch.float64
                ).requires_grad_()
                for node in self.components.mutable
            }
            optimizer = torch.optim.Adam(list(logits.values()), lr=0.2)
            for _ in range(steps):
                mechanisms = {node: theta.softmax(-1) for node, theta in logits.items()}
                loss = -self.expectation({**self.tables, **mechanisms}, error)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            rounded = {
                node: torch.eye(theta.shape[-1]).double()[theta.argmax(-1)] for node, theta in logits.items()
            }
            risk = float(self.expectation({**self.tables, **rounded}, error))
            best = max(best, (risk, rounded), key=lambda one: one[0])
        return best

    def _shape(self, node: Node) -> torch.Size:
        return torch.Size(len(self.values[n]) for n in self._family(node))

    def _error(
        self, subset: Iterable[Node] | None, predictor: tuple[tuple[Node, ...], Tensor] | None
    ) -> tuple[tuple[Node, ...], Tensor]:
        """(Y - f)² over the predictor's arguments and Y."""
        if predictor is None:
            predictor = self.predictor(subset if subset is not None else ())
        arguments, value = predictor
        return (*arguments, self.components.target), (
            value[..., None] - self.values[self.components.target]
        ) ** 2
