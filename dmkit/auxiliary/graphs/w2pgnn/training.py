"""Feasibility beside what pre-training was worth, on graphs drawn from graphons or on Debian's packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from ....data.packages import TOPICS, debian_graph
from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ... import stage
from .bases import statistics
from .graphons import estimate, graphon, sample
from .matching import gromov_wasserstein
from .transferring import finetune, joined, pretrain

Domain = tuple[list[np.ndarray], list[np.ndarray]]


@dataclass
class Arguments:
    """Which graphs, how many, and how they are learned from."""

    graphs: str = field(default="graphons", metadata=hint("graphons, or debian: topics of its packages."))
    families: list[int] = field(default_factory=lambda: [0, 1, 4, 8], metadata=hint("Numbers of graphons."))
    topics: list[str] = field(
        default_factory=lambda: ["games", "gnu-r", "net", "perl", "python"],
        metadata=hint("Topics of Debian."),
    )
    count: int = field(default=6, metadata=hint("Graphs of each graphon."))
    nodes: int = field(default=60, metadata=hint("Nodes of each."))
    resolution: int = field(default=16, metadata=hint("Of graphons."))
    normalize: bool = field(default=False, metadata=hint("Compare graphons divided by their mean."))
    width: int = field(default=32, metadata=hint("Of the network."))
    train_share: float = field(default=0.1, metadata=hint("Share of the target's nodes that are labelled."))
    finetune_steps: int = field(default=30, metadata=hint("Steps on the target."))

    def __post_init__(self) -> None:
        if self.graphs not in ("graphons", "debian"):
            raise unknown_name("--graphs", self.graphs, ("graphons", "debian"))
        for topic in self.topics:
            if topic not in TOPICS:
                raise unknown_name("topic", topic, TOPICS)
        for name in ("count", "nodes", "resolution", "width", "finetune_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if len(self.families if self.graphs == "graphons" else self.topics) < 2:
            raise ValueError("Two kinds of graphs are the least to transfer between.")


def drawn(W: np.ndarray, arguments: Arguments, generator: torch.Generator) -> Domain:
    """Graphs of a graphon; a node's class is the third of [0, 1] that its place is in."""
    pairs = [sample(W, arguments.nodes, generator) for _ in range(arguments.count)]
    return [a for a, _ in pairs], [(3 * u).astype(int) for _, u in pairs]


def domains(arguments: Arguments, seed: int) -> tuple[dict[str, Domain], dict[str, Domain]]:
    """What to pre-train on and what to learn then, by name.

    Targets of graphons are 0.8 of one and 0.2 of the next one. A topic of Debian is one graph, its packages;
    a package's class is whether another one of the extract depends on it. Every topic is source and target.
    """
    if arguments.graphs == "debian":
        data = debian_graph(small=True)
        needed = torch.zeros(len(data.y), dtype=torch.long)
        needed[data.depends[1]] = 1
        dense = torch.zeros(len(data.y), len(data.y))
        dense[data.edge_index[0], data.edge_index[1]] = 1
        found = {}
        for topic in arguments.topics:
            members = (data.y == TOPICS.index(topic)).nonzero().flatten()
            graph = dense[members][:, members].double().numpy()
            found[topic] = [graph], [needed[members].numpy()]
        return found, found
    generator = torch.Generator().manual_seed(seed)
    W = {f"graphon {k}": graphon(k) for k in arguments.families}
    names = list(W)
    sources = {name: drawn(W[name], arguments, generator) for name in names}
    targets = {
        f"0.8 {a} + 0.2 {b}": drawn(0.8 * W[a] + 0.2 * W[b], arguments, generator)
        for a, b in zip(names, names[1:] + names[:1], strict=True)
    }
    return sources, targets


def rank_correlation(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None]:
    """Spearman's, of a prediction with the gain: over all pairs, and the mean over targets; None where
    everything is gained alike.
    """

    def of(chosen: Sequence[Mapping[str, Any]]) -> float | None:
        # Gains are shares of nodes; equal ones may differ in their last bit, which is no rank.
        columns = [[round(float(row[name]), 6) for row in chosen] for name in (key, "gain")]
        varied = all(len(set(column)) > 1 for column in columns)
        return float(spearmanr(*columns).statistic) if varied else None

    each = [of([row for row in rows if row["target"] == t]) for t in sorted({row["target"] for row in rows})]
    known = [value for value in each if value is not None]
    return {"all pairs": of(rows), "within targets": float(np.mean(known)) if known else None}


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Pre-trains on each source, fine-tunes on each target with and without, and compares.

    Returns:
        "pairs": source, target, "feasibility", "statistics" (minus the distance of standardised statistics),
        "gain" in accuracy; "rank correlation" of both predictions with the gain.
    """
    sources, targets = domains(arguments, training.seed)
    options = arguments.resolution, arguments.normalize
    bases = {name: estimate(graphs, *options) for name, (graphs, _) in sources.items()}
    shapes = {name: estimate(graphs, *options) for name, (graphs, _) in targets.items()}
    kinds = {**sources, **targets}
    table = {name: np.mean([statistics(g) for g in graphs], axis=0) for name, (graphs, _) in kinds.items()}
    deviation = np.std(list(table.values()), axis=0).clip(1e-12)

    def tuned(name: str) -> TrainingArguments:
        return stage(training, name, max_train_steps=arguments.finetune_steps)

    networks = {
        name: pretrain(joined(*kind, training.seed), arguments.width, stage(training, f"pretrain-{name}"))
        for name, kind in sources.items()
    }
    pairs = []
    for target, kind in targets.items():
        data = joined(*kind, training.seed)
        settings = arguments.width, tuned(f"none/{target}"), arguments.train_share
        alone = finetune(None, data, *settings)
        for source, network in networks.items():
            if source == target:
                continue
            settings = arguments.width, tuned(f"{source}/{target}"), arguments.train_share
            pairs.append(
                {
                    "source": source,
                    "target": target,
                    "feasibility": -gromov_wasserstein(bases[source], shapes[target]).distance,
                    "statistics": -float(np.linalg.norm((table[source] - table[target]) / deviation)),
                    "alone": alone,
                    "gain": finetune(network, data, *settings) - alone,
                }
            )
    Path(training.output_dir).mkdir(parents=True, exist_ok=True)
    correlations = {key: rank_correlation(pairs, key) for key in ("feasibility", "statistics")}
    return {"pairs": pairs, "rank correlation": correlations}
