"""Learns pairs of digits one after the other and serves preferences over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from ....training.arguments import TrainingArguments, hint
from ....training.networks import MLP
from .._streams import TaskData, digit_pairs
from .gaussians import DISTANCES
from .learner import IBCL
from .selecting import select, weighted_accuracy


@dataclass
class Arguments:
    """IBCL on five pairs of digits, with a linear network."""

    prior_scales: list[float] = field(
        default_factory=lambda: [2.0, 2.5, 3.0], metadata=hint("Widths of the first task's priors.")
    )
    discard_threshold: float = field(
        default=0.0, metadata=hint("Posteriors this near to others are dropped.")
    )
    distance: str = field(default="w2", metadata=hint(f"Of posteriors: {' or '.join(DISTANCES)}."))
    kl_weight: float = field(default=1.0, metadata=hint("Weight of the divergence in the ELBO."))
    preferences: int = field(
        default=100, metadata=hint("How many preferences are drawn, from Dirichlet(0.3).")
    )
    alpha: float = field(default=0.01, metadata=hint("Probability outside the region of sampled models."))
    samples: int = field(default=10, metadata=hint("Models sampled for a preference."))


def dirichlet(tasks: int, count: int, seed: int, concentration: float = 0.3) -> list[list[float]]:
    """Preferences, most of which care for one or two tasks."""
    generator = torch.Generator().manual_seed(seed)
    alphas = torch.full((count, tasks), concentration, dtype=torch.float64)
    gammas = torch._standard_gamma(alphas, generator=generator)
    return (gammas / gammas.sum(1, keepdim=True)).tolist()


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Learns the tasks; returns mean preference-weighted test accuracies of several ways to serve a
    preference, in per cent, and the sweep between the first task and the last.
    """
    pairs = [data.holding_out(7) for data in digit_pairs(training.seed)]
    stream, validation = [data for data, _ in pairs], [held for _, held in pairs]
    module = MLP([65, 2], bias=False)
    base = IBCL(
        module,
        arguments.prior_scales,
        arguments.discard_threshold,
        distance=arguments.distance,
        kl_weight=arguments.kl_weight,
    )
    distances = [base.fit_task(data.rows(), training) for data in stream]
    if PartialState().is_main_process:
        base.save_pretrained(Path(training.output_dir) / "knowledge")
    return {
        **served(base, module, stream, validation, arguments, training.seed),
        "n_stored": base.n_stored,
        "smallest_distance": round(min(min(row) for row in distances[1:]), 2),
    }


def served(
    base: IBCL,
    module: MLP,
    stream: list[TaskData],
    validation: list[tuple[Tensor, Tensor]],
    arguments: Arguments,
    seed: int,
) -> dict[str, Any]:
    """What a knowledge base of all tasks is worth, on the tests; samples are chosen by validation data."""
    tests = [(data.test_inputs, data.test_labels) for data in stream]
    tasks, generator = len(stream), torch.Generator().manual_seed(seed)
    uniform, last = base.mean([1 / tasks] * tasks), base.mean([0.0] * (tasks - 1) + [1.0])
    scores: dict[str, list[float]] = {}
    bad: dict[str, list[float]] = {}

    def score(name: str, state: dict[str, Tensor], preference: list[float]) -> None:
        scores.setdefault(name, []).append(100 * weighted_accuracy(module, state, tests, preference))

    for preference in dirichlet(tasks, arguments.preferences, seed):
        score("interpolated mean", base.mean(preference, normalize=True), preference)
        score("last posterior's mean", last, preference)
        score("uniform preference", uniform, preference)
        for name, how in (
            ("interpolated, hdr", {"region": "hdr"}),
            ("interpolated, box", {"region": "box"}),
            ("interpolated, marginal", {"region": "marginal"}),
            ("mixture, hdr", {"combine": "mixture"}),
        ):
            states = base.generate(
                preference, arguments.alpha, arguments.samples, normalize=True, generator=generator, **how
            )
            for state in states:
                score(name, state, preference)
            chosen = select(module, states, validation, preference, floor=0.75)
            score(f"{name}, selected", chosen.best, preference)
            bad.setdefault(name, []).append(100 * chosen.bad_share)
    sweep = []
    for step in range(11):
        a = step / 10
        state = base.mean([a, *([0.0] * (tasks - 2)), 1 - a])
        ends = [weighted_accuracy(module, state, [tests[k]], [1.0]) for k in (0, -1)]
        sweep.append([a, *(round(100 * value, 2) for value in ends)])
    return {
        "accuracy": {name: round(mean(values), 2) for name, values in scores.items()},
        "bad_share": {name: round(mean(values), 2) for name, values in bad.items()},
        "sweep": sweep,
    }
