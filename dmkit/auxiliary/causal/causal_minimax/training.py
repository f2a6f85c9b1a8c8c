"""Chooses features from a table of several environments, with a graph that is given or learned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import networkx as nx
import torch

from ....errors import FileFormatError, unknown_name
from ....training.arguments import TrainingArguments, hint
from .generating import GRAPH, training_data
from .graphs import first_extension, without_environment
from .learning import learn_graph
from .selecting import select


@dataclass
class Arguments:
    """Causal minimax on a table; of the trainer's arguments it reads --output_dir and --seed."""

    data: str = field(default="generated", metadata=hint("generated (known truth), or a CSV file."))
    target: str = field(default="Y", metadata=hint("The column to predict."))
    environment: str = field(
        default="E", metadata=hint("The column that says where a row comes from, and its node in the graph.")
    )
    graph: str = field(default="", metadata=hint("A GML file whose nodes are columns; learned without it."))
    mutable: list[str] = field(
        default_factory=list, metadata=hint("What differs; by default the environment's neighbours.")
    )
    alpha: float = field(default=0.05, metadata=hint("Of the tests that a graph is learned by."))
    test: str = field(default="kci", metadata=hint("Which: kci, slow beyond 1,000 rows, or fisherz."))
    width: int = field(default=8, metadata=hint("Of the hidden layers; 0 for linear mechanisms."))
    restarts: int = field(default=4, metadata=hint("Of the ascent to the worst case."))
    steps: int = field(default=150, metadata=hint("Of each restart."))
    max_classes: int = field(default=4096, metadata=hint("The most classes of subsets to try."))
    overlap_limit: float = field(
        default=0.85, metadata=hint("The largest overlap figure at which a worst case is reported.")
    )


def read(arguments: Arguments, seed: int) -> tuple[dict[str, Any], nx.DiGraph, list[str]]:
    """The data, the DAG without the environment, and the mutable variables.

    Raises:
        FileFormatError: a table or a graph that is missing or none.
        ValueError: nothing is mutable, or the table has no such target.
    """
    if arguments.data == "generated":
        columns, index = training_data(torch.Generator().manual_seed(seed))
        data: dict[str, Any] = {**columns, arguments.environment: index}
        graph = nx.DiGraph([*GRAPH.edges, (arguments.environment, "M")])
    else:
        data, graph = read_csv(arguments.data), None
        if arguments.target not in data:
            raise unknown_name("--target", arguments.target, data)
    if arguments.graph:
        graph = read_gml(arguments.graph)
    elif graph is None:
        graph = learn_graph(data, arguments.environment, alpha=arguments.alpha, test=arguments.test)
    beside: list[str] = []
    if arguments.environment in graph:
        graph, beside = without_environment(graph, arguments.environment)
    if not (mutable := arguments.mutable or beside):
        raise ValueError(f"nothing is mutable: name columns, or join them to {arguments.environment!r}.")
    return data, first_extension(graph), mutable


def read_csv(path: str) -> dict[str, Any]:
    """Columns of a table with a header.

    Raises:
        FileFormatError: missing, or no table.
    """
    import pandas

    try:
        table = pandas.read_csv(path)
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is missing or no table: {error}") from error
    return {str(name): table[name].to_numpy() for name in table}


def read_gml(path: str) -> nx.DiGraph:
    """A graph whose nodes are named by their labels.

    Raises:
        FileFormatError: missing, or not GML.
    """
    try:
        return nx.DiGraph(nx.read_gml(path))
    except (OSError, ValueError, nx.NetworkXError) as error:
        raise FileFormatError(f"{path} is missing or is not GML: {error}") from error


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Selects, and writes the predictor into the output folder; returns every class with its worst case."""
    data, graph, mutable = read(arguments, training.seed)
    chosen = select(
        data,
        graph,
        arguments.target,
        mutable,
        seed=training.seed,
        width=arguments.width,
        restarts=arguments.restarts,
        steps=arguments.steps,
        max_classes=arguments.max_classes,
        overlap_limit=arguments.overlap_limit,
    )
    chosen.save_pretrained(training.output_dir)
    return {
        "features": list(chosen.features),
        "mutable": list(chosen.components.mutable),
        "full_set_is_optimal": chosen.components.full_set_is_optimal,
        "overlap": dict(chosen.overlap),
        "rows": [asdict(row) for row in chosen.rows],
    }
