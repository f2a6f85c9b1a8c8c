"""From data and a graph to the stable predictor with the least worst-case risk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...._files import atomic_folder, load_json, load_tensors, save_json
from ....errors import FileFormatError
from .classes import EquivalenceClass, equivalence_classes, exhaustive_classes, full_class
from .graphs import Components, graphical_condition
from .intervening import Mechanisms, risk, worst_case_risk
from .overlap import overlap
from .regressions import Columns, Regression, read_column

VERSION = 1
FEWEST = 30  # rows: overlap is told from 15 neighbours in two thirds of them


class OverlapError(ValueError):
    """The data do not cover what every choice's worst case asks about."""


@dataclass(frozen=True)
class Row:
    """What was found of one class of subsets.

    Attributes:
        features: its smallest member.
        free: what may be added to it without changing the predictor.
        risk: R̂, its worst-case risk; None where the data cannot support it.
        spread: how far the restarts of the ascent lie apart.
        pooled_risk: of the same predictor on the data as they are: what robustness costs.
        refused: why there is no risk.
    """

    features: tuple[str, ...]
    free: tuple[str, ...]
    risk: float | None
    spread: float | None
    pooled_risk: float
    refused: str = ""


@dataclass(frozen=True)
class Selection:
    """A stable predictor, and how it was chosen.

    Attributes:
        components: of the graph; where its `full_set_is_optimal`, the graph alone decided.
        features: S', of the class with the least R̂.
        predictor: f_{S'}.
        rows: of all classes that were tried, the best first, those without a risk last.
        overlap: of `overlap`.
        bounds: (lo, hi) that each mutable variable could take in the worst cases.
    """

    components: Components
    features: tuple[str, ...]
    predictor: Regression
    rows: tuple[Row, ...]
    overlap: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]

    def predict(self, data: Mapping[str, Any]) -> Tensor:
        """E[Y | x_{S'}, do(x_M)] (n,) float64 for columns of new data; the target need not be among them.

        Raises:
            ValueError: a column that the predictor needs is missing.
        """
        if missing := [name for name in self.predictor.inputs if name not in data]:
            raise ValueError(
                f"the data lack {', '.join(missing)}; they need {', '.join(self.predictor.inputs)}."
            )
        columns = {name: read_column(name, data[name]) for name in self.predictor.inputs}
        return self.predictor(columns or {"": torch.zeros(len(data[next(iter(data))]))})

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `predictor.safetensors`, all or nothing."""
        about = {
            "version": VERSION,
            "target": self.components.target,
            "mutable": list(self.components.mutable),
            "graph": nx.node_link_data(self.components.graph, edges="edges"),
            "features": list(self.features),
            "inputs": list(self.predictor.inputs),
            "rows": [vars(row) for row in self.rows],
            "overlap": dict(self.overlap),
            "bounds": {name: list(ends) for name, ends in self.bounds.items()},
        }
        with atomic_folder(folder) as draft:
            save_json(draft / "config.json", about)
            save_file(dict(self.predictor.tensors), str(draft / "predictor.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Selection:
        """The inverse.

        Raises:
            FileFormatError: a file is missing, foreign or of another version.
        """
        about = load_json(Path(folder) / "config.json")
        if about.get("version") != VERSION:
            raise FileFormatError(f"{folder} should have version {VERSION}, not {about.get('version')!r}.")
        tensors = load_tensors(Path(folder) / "predictor.safetensors")
        try:
            graph = nx.node_link_graph(about["graph"], edges="edges")
            rows = (
                Row(**{**row, "features": tuple(row["features"]), "free": tuple(row["free"])})
                for row in about["rows"]
            )
            made = cls(
                graphical_condition(graph, about["target"], about["mutable"]),
                tuple(about["features"]),
                Regression(tuple(about["inputs"]), tensors),
                tuple(rows),
                about["overlap"],
                {name: (low, high) for name, (low, high) in about["bounds"].items()},
            )
            made.predict({"": [0.0], **{name: [0.0] for name in made.predictor.inputs}})
        except (KeyError, TypeError, ValueError, RuntimeError, nx.NetworkXError) as error:
            raise FileFormatError(f"{folder} is no selection: {error!r}.") from error
        return made


def select(
    data: Mapping[str, Any],
    graph: nx.DiGraph,
    target: str,
    mutable: Iterable[str],
    *,
    seed: int = 0,
    width: int = 8,
    repeats: int = 3,
    restarts: int = 4,
    steps: int = 150,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    max_classes: int = 4096,
    overlap_limit: float = 0.85,
    exhaustive: bool = False,
) -> Selection:
    """The subset of stable variables whose predictor has the least worst-case risk.

    If the graph says that the full set is optimal, it is taken as it is. Otherwise one member of each class
    of equivalent subsets is fitted on an interventional sample, and its worst case found by gradient ascent.

    Args:
        data: columns of all environments together, a row each an observation; a `DataFrame` or a mapping.
        graph: the DAG, of the same names; columns that are no node are left alone.
        target: Y.
        mutable: the variables whose mechanisms differ between environments.
        seed: of permutations and first weights.
        width: of the hidden layers; 0 for linear mechanisms and predictors.
        repeats: interventional samples of each row.
        restarts, steps: of the ascent.
        bounds: (lo, hi) that a mutable variable may take; those of the data where not given.
        max_classes: the most classes to try.
        overlap_limit: a worst case is reported only where `overlap` of each mutable variable that matters is
            no larger.
        exhaustive: find the classes by all 2^d subsets.

    Raises:
        ValueError: a node without a column, a column that is not finite numbers or of another length, fewer
            than 30 rows, numbers out of range, bounds of what is not mutable, and all that
            `graphical_condition` and `equivalence_classes` refuse.
        OverlapError: no choice's worst case can be supported.
        MissingExtraError: scikit-learn is not installed.
    """
    if width < 0 or restarts < 1 or repeats < 1 or steps < 0:
        raise ValueError(
            f"width {width} and steps {steps} are at least 0, restarts {restarts} and repeats {repeats} 1."
        )
    components = graphical_condition(graph, target, mutable)
    for name, (low, high) in (bounds or {}).items():
        if name not in components.mutable or not low <= high:
            raise ValueError(
                f"bounds ({low}, {high}) of {name!r}: of a mutable variable, the lower end first."
            )
    columns = read_columns(data, components)
    generator = torch.Generator().manual_seed(seed)
    found = overlap(components, columns, generator=generator)
    mechanisms = Mechanisms.learn(components, columns, width=width, seed=seed, bounds=bounds)
    sample = mechanisms.sample(generator=generator, repeats=repeats)
    if components.full_set_is_optimal:
        search = [full_class(components)]
    elif exhaustive:
        search = exhaustive_classes(components)
    else:
        search = equivalence_classes(components, max_classes=max_classes)
    scored: list[tuple[Row, Regression]] = []
    for one in search:
        predictor = mechanisms.stable_predictor(sample, one.minimal, width=width, seed=seed)
        refused = _refusal(components, one, found, overlap_limit)
        value, spread = None, None
        if not refused:
            value, spread = worst_case_risk(
                mechanisms, predictor, generator=generator, restarts=restarts, steps=steps
            )
        pooled = float(risk(predictor, columns, target))
        features = tuple(node for node in components.stable if node in one.minimal)
        free = tuple(node for node in components.stable if node in one.free)
        scored.append((Row(features, free, value, spread, pooled, refused), predictor))
    scored.sort(key=lambda pair: math.inf if pair[0].risk is None else pair[0].risk)
    best, predictor = scored[0]
    if best.risk is None:
        raise OverlapError(
            f"no worst-case risk can be reported: {best.refused}. Environments in which it varies more at "
            "given parents would help."
        )
    rows = tuple(row for row, _ in scored)
    return Selection(components, best.features, predictor, rows, found, mechanisms.bounds)


def read_columns(data: Mapping[str, Any], components: Components) -> Columns:
    """The nodes' columns as float64.

    Raises:
        ValueError: as `select`.
    """
    if missing := [str(node) for node in components.graph if node not in data]:
        raise ValueError(f"the graph's nodes {', '.join(missing)} are not columns of the data.")
    columns = {node: read_column(node, data[node]) for node in components.graph}
    if len({len(column) for column in columns.values()}) > 1:
        lengths = {node: len(column) for node, column in columns.items()}
        raise ValueError(f"columns must have one length, got {lengths}.")
    if (rows := len(columns[components.target])) < FEWEST:
        raise ValueError(f"{rows} rows are too few to learn mechanisms from; at least {FEWEST} are needed.")
    for node in components.moved:
        if len(columns[node].unique()) <= 2 < len(columns[node]):
            raise ValueError(
                f"{node!r} has two values and moves with mutable variables: additive noise does not fit it. "
                "`FiniteModel` is for variables of few values."
            )
    return columns


def _refusal(components: Components, one: EquivalenceClass, found: Mapping[str, float], limit: float) -> str:
    """Why a class's worst case cannot be told from the data; empty if it can.

    Where neither Y nor S' lies below a mutable variable, the risk does not depend on what that does, whatever
    the overlap: Y is then separated from it, and f does not have it.
    """
    read = one.minimal | {components.target}
    poor = {
        name: figure
        for name, figure in found.items()
        if figure > limit and read & nx.descendants(components.graph, name)
    }
    if not poor:
        return ""
    names = ", ".join(f"{name} (overlap figure {figure:.2f} > {limit:g})" for name, figure in poor.items())
    return f"{names} almost follows from its parents, so most of what it might do was never seen"
