"""Strategies over shares of the target's participants, with what was gained over training from scratch and
what of the source was forgotten.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ....training.arguments import TrainingArguments
from ... import stage
from .networks import EEGNetwork
from .predicting import evaluate
from .recordings import Recordings, check_disjoint
from .transfer import Transfer, adapt

CHOSEN = ("scratch", "finetune")


@dataclass(frozen=True)
class Report:
    """Figures of a sweep.

    Attributes:
        zero_shot: of the source's network on the target's test recordings.
        source: of the source's network on the source's test recordings; empty where there are none.
        rows: a fit each: strategy, fraction, seed, participants, recordings, balanced_accuracy, accuracy, f1,
            and where the source has test recordings `source_balanced_accuracy` and `forgetting`, what was
            lost of it.
    """

    zero_shot: dict[str, float]
    source: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def values(self, strategy: str, fraction: float, what: str = "balanced_accuracy") -> dict[int, float]:
        """A figure by seed."""
        return {
            row["seed"]: row[what]
            for row in self.rows
            if row["strategy"] == strategy and row["fraction"] == fraction and what in row
        }

    def gains(self, strategy: str, fraction: float) -> list[float]:
        """Balanced accuracy over that from scratch, seed by seed."""
        alone = self.values("scratch", fraction)
        return [v - alone[seed] for seed, v in self.values(strategy, fraction).items() if seed in alone]

    def negative(self) -> list[dict[str, Any]]:
        """Where transfer was worse than scratch in the mean over seeds: strategy, fraction, mean gain, and
        the share of seeds in which it was worse.
        """
        found = []
        for strategy, fraction in dict.fromkeys((r["strategy"], r["fraction"]) for r in self.rows):
            gain = self.gains(strategy, fraction) if strategy != "scratch" else []
            if gain and statistics.mean(gain) < 0:
                worse = sum(g < 0 for g in gain) / len(gain)
                found.append({"strategy": strategy, "fraction": fraction,
                              "gain": statistics.mean(gain), "seeds_worse": worse})  # fmt: skip
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it, with the list of negative transfer."""
        return {
            "zero_shot": self.zero_shot,
            "source": self.source,
            "worse_than_scratch": self.negative(),
            "rows": self.rows,
        }


def fraction_sweep(
    source: EEGNetwork,
    target: Recordings,
    test: Recordings,
    training: TrainingArguments,
    *,
    fractions: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
    strategies: Sequence[str] = CHOSEN,
    seeds: Sequence[int] = (0, 1, 2),
    transfer: Transfer | None = None,
    rates: Mapping[str, float] | None = None,
    valid: Recordings | None = None,
    source_train: Recordings | None = None,
    source_test: Recordings | None = None,
) -> Report:
    """Fits every strategy on every share with every seed, and measures each once on recordings that nothing
    was chosen by.

    Args:
        source: trained on the source.
        target: the target's recordings to train on; of one seed all strategies get the same share.
        test: the target's test recordings.
        training: arguments of each fit; its folder has one for each.
        fractions: shares of the participants of each class.
        strategies: of `STRATEGIES`; gains want "scratch" among them.
        seeds: of shares, weights and order.
        transfer: what the strategies have in common.
        rates: learning rates of strategies that have another one.
        valid: recordings of the target that choose the epoch; the last one by default.
        source_train: the source's recordings, for "joint".
        source_test: the source's test recordings, for forgetting.

    Raises:
        ValueError: as of `Transfer`, `Recordings.share` and `fit`; a participant in two parts.
    """
    parts = {"train": target, "test": test, **({} if valid is None else {"validation": valid})}
    check_disjoint(**parts)
    kinds = [replace(transfer or Transfer(), strategy=name) for name in strategies]
    before = {} if source_test is None else evaluate(source, source_test)
    report = Report(evaluate(source, test), before)
    for fraction in fractions:
        for seed in seeds:
            share = target.share(fraction, seed)
            for kind in kinds:
                rate = (rates or {}).get(kind.strategy, training.learning_rate)
                name = f"{kind.strategy}-{fraction:g}-{seed}"
                own = stage(training, name, seed=seed, learning_rate=rate)
                network = adapt(source, share, own, kind, also=source_train, valid=valid)
                row = {"strategy": kind.strategy, "fraction": fraction, "seed": seed,
                       "participants": len(share.participants()), "recordings": len(share),
                       **evaluate(network, test)}  # fmt: skip
                if source_test is not None:
                    after = evaluate(network, source_test)["balanced_accuracy"]
                    row |= {"source_balanced_accuracy": after}
                    if kind.strategy not in ("scratch", "joint"):
                        row |= {"forgetting": before["balanced_accuracy"] - after}
                report.rows.append(row)
    return report
