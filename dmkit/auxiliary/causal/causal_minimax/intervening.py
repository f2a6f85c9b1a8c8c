"""Samples under interventions, stable predictors, and their worst-case risk.

v = g_v(Pa(v)) + r_v      for every v that moves with the mutable variables        (additive noise)
f_{S'}(x_{S'}, x_M) = E[Y | x_{S'}, do(x_M)]
R(S') = max over h of E[(Y - f_{S'})²],  x_m = h_m(Pa(m)) in [lo_m, hi_m]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import networkx as nx
import torch
from torch import Tensor

from .graphs import Components
from .regressions import Columns, Regression, regress, simplest

Function: TypeAlias = Callable[[Columns], Tensor]  # of columns (..., n) -> (..., n)


@dataclass(frozen=True)
class Mechanisms:
    """What does not change between environments, learned from all of them together.

    Attributes:
        components: of the graph.
        columns: the data, each (n,).
        equations: g_v of each v in De(M).
        residuals: r_v (n,) of each.
        bounds: (lo, hi) of each mutable variable.
    """

    components: Components
    columns: Columns
    equations: Mapping[str, Function]
    residuals: Mapping[str, Tensor]
    bounds: Mapping[str, tuple[float, float]]

    @classmethod
    def learn(
        cls,
        components: Components,
        columns: Columns,
        *,
        width: int = 8,
        seed: int = 0,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> Mechanisms:
        """Fits the structural equations; `bounds` are those of the data where not given."""
        equations = {
            node: simplest(columns, components.parents(node), columns[node], width=width, seed=seed)
            for node in components.moved
        }
        residuals = {node: columns[node] - equation(columns) for node, equation in equations.items()}
        observed = {m: (float(columns[m].min()), float(columns[m].max())) for m in components.mutable}
        return cls(components, columns, equations, residuals, {**observed, **(bounds or {})})

    def sample(self, *, generator: torch.Generator, repeats: int = 3) -> dict[str, Tensor]:
        """A sample (repeats · n,) where nothing upstream says anything of X_M.

        Mutable columns are permuted; what moves with them is computed anew, with permuted residuals: without
        them f would trust the moved variables too much.
        """
        rows = len(next(iter(self.columns.values())))

        def shuffled(column: Tensor) -> Tensor:
            return column[torch.randperm(rows, generator=generator)]

        parts = []
        for _ in range(repeats):
            made = dict(self.columns)
            made |= {m: shuffled(self.columns[m]) for m in self.components.mutable}
            for node in self.components.moved:
                made[node] = self.equations[node](made) + shuffled(self.residuals[node])
            parts.append(made)
        return {name: torch.cat([part[name] for part in parts]) for name in self.columns}

    def follow(self, functions: Mapping[str, Function]) -> dict[str, Tensor]:
        """The data (..., n) as they would be with X_m = h_m(Pa(m)), each row with its own residuals."""
        made = dict(self.columns)
        for node in nx.topological_sort(self.components.graph):
            if node in functions:
                made[node] = functions[node](made)
            elif node in self.equations:
                made[node] = self.equations[node](made) + self.residuals[node]
        return made

    def stable_predictor(
        self, sample: Columns, subset: Iterable[str], *, width: int = 8, seed: int = 0
    ) -> Regression:
        """f_{S'} from an interventional sample. Mutable variables that say nothing beside S' stay out."""
        inside = frozenset(subset)
        inputs = [node for node in self.components.stable if node in inside]
        inputs += self.components.informative(inside)
        return regress(sample, inputs, sample[self.components.target], width=width, seed=seed)


class Responses:
    """Functions h_m of a mutable variable's parents, several at once, with values in [lo, hi]: networks with
    a hidden layer, of random first weights, or constants where there are no parents.
    """

    def __init__(
        self,
        inputs: tuple[str, ...],
        columns: Columns,
        bounds: tuple[float, float],
        count: int,
        width: int,
        generator: torch.Generator,
    ):
        self.inputs, self.bounds = inputs, bounds
        shapes = [(count, len(inputs), width), (count, 1, width), (count, width, 1), (count, 1, 1)]
        scales = (1.5, 1.5, 2.0, 0.5)
        self.parameters = [
            (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
            for shape, scale in zip(shapes, scales, strict=True)
        ]
        self.means = torch.stack([columns[name].mean() for name in inputs]) if inputs else torch.zeros(0)
        self.deviations = torch.stack([columns[name].std() for name in inputs]) if inputs else torch.ones(0)

    def __call__(self, columns: Columns) -> Tensor:
        """(count, n)."""
        first, shift, second, last = self.parameters
        low, high = self.bounds
        if not self.inputs:
            return low + (high - low) * last[..., 0].sigmoid().expand(
                -1, next(iter(columns.values())).shape[-1]
            )
        x = torch.stack(torch.broadcast_tensors(*(columns[name] for name in self.inputs)), dim=-1)
        x = (x - self.means) / self.deviations
        hidden = (x @ first + shift).tanh()
        return low + (high - low) * (hidden @ second + last)[..., 0].sigmoid()


class Constant:
    """h_m = one value."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, columns: Columns) -> Tensor:
        return torch.full_like(next(iter(columns.values())), self.value)


def risk(predictor: Function, columns: Columns, target: str) -> Tensor:
    """E[(Y - f)²] (...,) of data (..., n)."""
    return (columns[target] - predictor(columns)).square().mean(-1)


def worst_case_risk(
    mechanisms: Mechanisms,
    predictor: Regression,
    *,
    generator: torch.Generator,
    restarts: int = 4,
    steps: int = 150,
    width: int = 8,
    lr: float = 0.1,
) -> tuple[float, float]:
    """R̂ of a predictor, by gradient ascent over the functions that X_M may follow.

    Args:
        mechanisms: what does not change.
        predictor: f, which stays as it is.
        generator: for the first functions.
        restarts: how many ascents, all at once.
        steps: of each, by Adam.
        width: of the functions' hidden layer.
        lr: of Adam.

    Returns:
        The largest risk found, constant functions at the bounds included, and how far the restarts' risks lie
        apart. It is a lower bound of what the worst function does.
    """
    components, target = mechanisms.components, mechanisms.components.target
    ends = [{m: Constant(mechanisms.bounds[m][end]) for m in components.mutable} for end in (0, 1)]
    constants = [float(risk(predictor, mechanisms.follow(end), target)) for end in ends]
    if not {*predictor.inputs, target} & {*components.mutable, *components.moved}:
        return constants[0], 0.0  # nothing that the functions do reaches the risk
    responses = {
        m: Responses(
            components.parents(m), mechanisms.columns, mechanisms.bounds[m], restarts, width, generator
        )
        for m in components.mutable
    }
    optimizer = torch.optim.Adam([p for one in responses.values() for p in one.parameters], lr=lr)
    for _ in range(steps):
        loss = -risk(predictor, mechanisms.follow(responses), target).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = risk(predictor, mechanisms.follow(responses), target)
    return max(float(found.max()), *constants), float(found.max() - found.min())
