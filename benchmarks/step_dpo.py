"""Per-step negatives beside whole ones, SFT and RFT, on a tiny model that adds; accuracy over problems.

    python benchmarks/step_dpo.py        (about ten minutes on a core)

A Llama of two layers and 48 thousand weights adds four digits, one a line, in an order that the given
solutions choose at random; the check sees the last digit only. SFT at 0.002, RFT from there at 0.001 with
its own right solutions, at most four of eight a problem, batches of 64. Pairs: at most two wrong ones of
the eight, their steps valued by five endings each. DPO: aggressive at beta 0.3 and 0.0002, gentle at beta 1
and 0.00005. Accuracy in per cent of the likeliest solutions of 2000 other problems: its standard error is
1.1 or less.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import head, number, spread, table
from torch import nn

from dmkit.auxiliary.rl.step_dpo import (
    LanguageModel,
    PreferenceTask,
    StepSplitter,
    SupervisedTask,
    build_pairs,
    dpo_loss,
    step_values,
)
from dmkit.auxiliary.rl.step_dpo.arithmetic import LONGEST, check, make_problems, tiny_model, tiny_tokenizer
from dmkit.auxiliary.rl.step_dpo.tasks import preference_rows, supervised_rows
from dmkit.auxiliary.rl.step_dpo.training import collect, evaluate, fit, supervised
from dmkit.training.arguments import TrainingArguments

SEEDS, TABLES, TEST = (0, 1, 2), (300, 1500), 2000
COUNTS, SHORT = (400, 750, 1500, 3000), (300, 600, 1200)
CURVES = {"short training": SHORT, "long training": COUNTS}
# Steps of SFT, RFT and DPO: shorter with few problems, which a long SFT learns by heart.
STEPS, LONG = {300: (400, 100, 100)}, (1000, 300, 200)
# 100 steps are over twenty passes over the pairs of 300 problems; these are about as many as 200 are of 1500.
FEWER, FEW = (400, 100, 40), ", 40 steps"
AGGRESSIVE, GENTLE = {"beta": 0.3, "learning_rate": 2e-4}, {"beta": 1.0, "learning_rate": 5e-5}
# name -> start, pairing, how, whether labels are soft
VARIANTS: dict[str, tuple[str, str, dict[str, float], bool]] = {
    "aggressive, full": ("sft", "full", AGGRESSIVE, False),
    "aggressive, pit prefix": ("sft", "pit_prefix", AGGRESSIVE, False),
    "from RFT, full": ("rft", "full", GENTLE, False),
    "from RFT, pit prefix": ("rft", "pit_prefix", GENTLE, False),
    "from RFT, shared prefix": ("rft", "shared_prefix", GENTLE, False),
    "from SFT, full": ("sft", "full", GENTLE, False),
    "from SFT, pit prefix": ("sft", "pit_prefix", GENTLE, False),
    "from SFT, shared prefix": ("sft", "shared_prefix", GENTLE, False),
    "aggressive, shared prefix": ("sft", "shared_prefix", AGGRESSIVE, False),
    "aggressive, shared prefix, soft labels": ("sft", "shared_prefix", AGGRESSIVE, True),
}
CURVE = "from RFT, pit prefix"
NAMES = ("SFT", "RFT", *VARIANTS, *(f"{name}{FEW}" for name in VARIANTS if name.startswith("from RFT")))
# The figures of an earlier small experiment, before this code, by seed: other problems, SFT of 1500 steps at
# 0.001, DPO of 300, 500 test problems.
EARLIER = {
    "SFT": (63.6, 54.6, 45.6),
    "RFT": (74.8, 63.4, 44.6),
    "aggressive, full": (40.0, 32.2, 28.8),
    "aggressive, pit prefix": (60.2, 53.8, 39.4),
    "from SFT, full": (70.0, 59.4, 47.8),
    "from SFT, pit prefix": (70.0, 59.2, 46.0),
    "from SFT, shared prefix": (70.0, 64.2, 46.2),
    "from RFT, full": (73.6, 57.4, 46.6),
    "from RFT, pit prefix": (76.8, 62.0, 49.2),
    "from RFT, shared prefix": (73.0, 62.0, 47.2),
}
ABOUT = {"what": " ".join(__doc__.split("\n\n")[2].split())}


def training(folder: str, seed: int, steps: int, learning_rate: float) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        seed=seed,
        train_batch_size=64,
        max_train_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        adam_beta1=0.9,
        adam_weight_decay=0.01,
        max_grad_norm=0,
        checkpointing_steps=0,
        save_images_epochs=0,
        save_model_epochs=0,
        report_to="none",
    )


class Lesson:
    """A model, taught from so many problems, and what it makes of them; each part when it is asked for."""

    def __init__(self, count: int, seed: int, steps: tuple[int, int, int] | None = None):
        self.seed, self.steps = seed, steps or STEPS.get(count, LONG)
        self.problems = make_problems(count, seed)
        self.test = make_problems(TEST, seed, start=10_000 - TEST)
        self.tokenizer, self.splitter = tiny_tokenizer(), StepSplitter()
        self.models: dict[str, nn.Module] = {}

    def fit(self, make: Any, model: nn.Module, rows: Any, steps: int, rate: float) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            return fit(make, model, rows, training(folder, self.seed, steps, rate))

    def policy(self, model: nn.Module) -> LanguageModel:
        return LanguageModel(model, self.tokenizer, max_new_tokens=LONGEST, batch_size=2000)

    def measure(self, model: nn.Module) -> dict[str, float]:
        found = evaluate(self.policy(model), self.test, check)
        return {name: round(100 * value, 2) for name, value in found.items()}

    def sft(self) -> nn.Module:
        if "sft" not in self.models:
            torch.manual_seed(self.seed)
            given = {p: [p.solution] for p in self.problems}
            rows = supervised_rows(supervised(self.tokenizer, given, self.splitter))
            self.models["sft"] = self.fit(
                SupervisedTask, tiny_model(self.tokenizer), rows, self.steps[0], 2e-3
            )
        return self.models["sft"]

    def prepare(self) -> None:
        """SFT, samples, values, RFT."""
        if "rft" in self.models:
            return
        sft = self.sft()
        policy = self.policy(sft)
        self.sampled = collect(policy, self.problems, check, seed=self.seed)
        self.values = step_values(
            policy,
            self.sampled.negatives,
            check,
            k=5,
            estimator="mean",
            stop_at_zero=True,
            seed=self.seed + 100,
        )
        own = {p: [p.solution, *self.sampled.positives[p.question]] for p in self.problems}
        rows = supervised_rows(supervised(self.tokenizer, own, self.splitter))
        self.models["rft"] = self.fit(SupervisedTask, sft, rows, self.steps[1], 1e-3)

    def base(self) -> dict[str, Any]:
        self.prepare()
        first = [value.q[0] for value in self.values]
        return {
            "sft": self.measure(self.models["sft"]),
            "rft": self.measure(self.models["rft"]),
            "wrong solutions": len(self.values),
            "mean pit": round(statistics.mean(value.pit for value in self.values), 3),
            "mean Q of the first step": round(statistics.mean(first), 3),
        }

    def variant(self, name: str) -> dict[str, Any]:
        self.prepare()
        start, pairing, how, soft = VARIANTS[name]
        pairs, left_out = build_pairs(
            self.tokenizer,
            self.sampled.positives,
            self.values,
            pairing=pairing,
            starts=self.sampled.starts,
            seed=self.seed,
        )
        before, beta = self.models[start], how["beta"]
        rows, _ = preference_rows(pairs, before, soft_labels=soft)
        make = lambda model: PreferenceTask(model, beta=beta, soft_labels=soft)  # noqa: E731
        after = self.fit(make, before, rows, self.steps[2], how["learning_rate"])
        moved = {k: round(v, 4) for k, v in make(after).figures(rows).items()}
        return {**self.measure(after), "pairs": len(pairs), "left out": dict(left_out), "moved": moved}


def theory(beta: float) -> dict[str, Any]:
    """Four next steps: where DPO over all pairs goes, with soft labels and with hard ones."""
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    q = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=torch.float64)
    i, j = torch.cartesian_prod(torch.arange(4), torch.arange(4)).unbind(1)
    sure = (q[i] > q[j]).double() + 0.5 * (q[i] == q[j])

    def descend(better: torch.Tensor, steps: int, rate: float) -> Iterator[list[float]]:
        theta = reference.log().clone().requires_grad_()
        for _ in range(steps):
            log = theta.log_softmax(0)
            losses, _ = dpo_loss(
                log[i], log[j], reference.log()[i], reference.log()[j], beta=beta, probability=better
            )
            (gradient,) = torch.autograd.grad((reference[i] * reference[j] * losses).sum(), theta)
            with torch.no_grad():
                theta -= rate * gradient
            yield theta.detach().softmax(0).tolist()

    *_, soft = descend((q[i] - q[j]).sigmoid(), 6000, 10 / beta**2)
    hard = [p[0] for p in descend(sure, 1000, 10 / beta**2)]
    optimum = reference * torch.exp(q / beta)
    optimum = (optimum / optimum.sum()).tolist()
    return {
        "soft labels": [round(p, 6) for p in soft],
        "optimum": [round(p, 6) for p in optimum],
        "largest difference": max(abs(a - b) for a, b in zip(soft, optimum, strict=True)),
        "best step, hard labels, 10 / 100 / 1000 steps": [round(hard[k - 1], 4) for k in (10, 100, 1000)],
    }


# Tables and the plot


def of(cells: dict[str, Any], kind: str, count: int, key: str = "accuracy") -> list[float]:
    """One number a seed; `kind` is SFT, RFT or a variant."""
    found = [at(cells, kind, count, seed) for seed in SEEDS]
    return [one[key] for one in found if one]


def at(cells: dict[str, Any], kind: str, count: int, seed: int) -> dict[str, float] | None:
    """What was measured of SFT, RFT or a variant, with so many problems."""
    base = cells.get(f"base/{count}/{seed}", {})
    if kind == "SFT":
        short = cells.get(f"sft-short/{count}/{seed}")
        return base.get("sft") or cells.get(f"sft/{count}/{seed}") or short
    if kind == "RFT":
        return base.get("rft")
    steps = "dpo-40" if kind.endswith(FEW) else "dpo"
    return cells.get(f"{steps}/{count}/{kind.removesuffix(FEW)}/{seed}")


def curve(cells: dict[str, Any], kind: str, counts: Sequence[int]) -> dict[int, float]:
    """Mean accuracy by the number of problems, over the seeds for which SFT's curve is whole."""
    known = {count: {s for s in SEEDS if at(cells, "SFT", count, s)} for count in counts}
    whole = set.intersection(*filter(None, known.values())) if any(known.values()) else set()
    found: dict[int, float] = {}
    for count in known:
        each = [one["accuracy"] for seed in whole if (one := at(cells, kind, count, seed))]
        if each:
            found[count] = statistics.mean(each)
    return found


def worth(reference: dict[int, float], count: int, accuracy: float) -> str:
    """How many times `count` problems the reference needs for an accuracy, by its curve over log problems."""
    points = sorted(reference.items())
    for (a, low), (b, high) in pairwise(points):
        if low <= accuracy <= high:
            share = (accuracy - low) / max(high - low, 1e-9)
            return f"{math.exp(math.log(a) + share * math.log(b / a)) / count:.2f}x"
    beyond = accuracy > points[-1][1]
    return f"more than {points[-1][0] / count:.2f}x" if beyond else f"less than {points[0][0] / count:.2f}x"


def bars(cells: dict[str, Any], count: int) -> dict[str, Any]:
    """What is asked, what was measured, whether it is met."""
    found: dict[str, Any] = {}

    def paired(better: str, worse: str) -> list[float]:
        each = [(at(cells, better, count, seed), at(cells, worse, count, seed)) for seed in SEEDS]
        return [a["accuracy"] - b["accuracy"] for a, b in each if a and b]

    if gains := paired("aggressive, pit prefix", "aggressive, full"):
        text = f"aggressive: pit prefix above full by 8 points at each of {len(gains)} seeds"
        found[text] = [min(gains), min(gains) >= 8]
    for few in ("", FEW):
        for name in (f"from RFT, full{few}", f"from RFT, shared prefix{few}", "RFT"):
            if gains := paired(f"{CURVE}{few}", name):
                text = f"{CURVE}{few} minus {name}, mean of {len(gains)} seeds"
                found[text] = [statistics.mean(gains), statistics.mean(gains) >= 0]
    if gains := paired("from SFT, pit prefix", "SFT"):
        text = f"from SFT, pit prefix minus SFT, mean of {len(gains)} seeds"
        found[text] = [statistics.mean(gains), statistics.mean(gains) >= 0]
    return found


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    text = head(content, "Per-step negatives")
    for count in TABLES:
        rows = []
        for name in NAMES:
            if values := of(cells, name, count):
                wrong = spread(of(cells, name, count, "wrong_steps"))
                rows.append([name, " / ".join(f"{v:.1f}" for v in values), spread(values), wrong])
                if count == 1500:
                    rows[-1].append(" / ".join(map(str, EARLIER.get(name, ()))))
        if not rows:
            continue
        steps = " / ".join(map(str, STEPS.get(count, LONG)))
        text += f"## {count} problems, {steps} steps of SFT, RFT and DPO\n\n"
        header = ["", "accuracy by seed", "mean", "wrong steps"]
        text += table([*header, *(["accuracy, earlier experiment"] if count == 1500 else [])], rows) + "\n"
        found = bars(cells, count)
        rows = [[name, number(v[0]), number(v[1])] for name, v in found.items()]
        text += table(["", "measured", "met"], rows) + "\n"
    curves = {}
    text += "## Accuracy over problems\n\nWorth: how many times as many problems SFT needs for it.\n"
    for label, counts in CURVES.items():
        curves |= {f"{name}, {label}": curve(cells, name, counts) for name in ("SFT", "RFT", CURVE)}
        reference, rows = curves[f"SFT, {label}"], []
        for name in ("SFT", "RFT", CURVE):
            points = curves[f"{name}, {label}"]
            row = [name, *(f"{points[n]:.1f}" if n in points else "" for n in counts)]
            found = [worth(reference, n, v) for n, v in points.items() if name != "SFT"]
            row.append(" / ".join(found))
            rows.append(row)
        text += f"\n{label.capitalize()}, mean of the seeds that have all of SFT's.\n\n"
        text += table(["", *(f"{n} problems" for n in counts), "worth"], rows)
    text += "\n## The optimum\n\nFour next steps, π_ref = 0.1 … 0.4, Q = 0.9, 0.5, 0.2, 0.\n\n"
    rows = [[key.partition("/")[2], *map(number, c.values())] for key, c in cells.items() if "theory" in key]
    if rows:
        first = next(c for key, c in cells.items() if "theory" in key)
        text += table(["beta", *first], rows)
    draw(cells, curves)
    return text + "\n![Accuracy by method, and over problems](step_dpo.png)\n"


def draw(cells: dict[str, Any], curves: dict[str, dict[int, float]]) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    shown = [count for count in TABLES if of(cells, "aggressive, full", count)]
    names = [name for name in NAMES if any(of(cells, name, c) for c in shown)]
    for shift, count in enumerate(shown):
        for y, name in enumerate(names):
            if values := of(cells, name, count):
                place = y + 0.4 * shift - 0.2 * (len(shown) - 1)
                colour = ("tab:blue", "navy")[shift] if "pit" in name else ("silver", "grey")[shift]
                left.barh(place, statistics.mean(values), 0.36, color=colour)
                left.plot(values, [place] * len(values), "k.", ms=4)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("accuracy, %")
    left.set_title(f"problems: {', then '.join(map(str, shown))}; points: seeds", fontsize=9)
    for name, points in curves.items():
        if points:
            right.semilogx(list(points), list(points.values()), "o-", label=name)
    right.set_xticks((*SHORT, *COUNTS), [str(n) for n in (*SHORT, *COUNTS)], fontsize=7, rotation=60)
    right.minorticks_off()
    right.set(xlabel="problems", ylabel="accuracy, %")
    right.legend(fontsize=8)
    figure.savefig(RESULTS / "step_dpo.png", dpi=110)
    plt.close(figure)


def measure(cells: Cells, count: int, seed: int, names: Any) -> None:
    lesson = Lesson(count, seed)
    cells.once(f"base/{count}/{seed}", lesson.base)
    for name in names:
        cells.once(f"dpo/{count}/{name}/{seed}", lambda name=name: lesson.variant(name))


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("step_dpo", ABOUT)
    for beta in (0.3, 1.0):
        cells.once(f"theory/{beta:g}", lambda beta=beta: theory(beta))
    for count in TABLES:
        for seed in SEEDS:
            measure(cells, count, seed, VARIANTS)
    for seed in SEEDS:
        few = Lesson(TABLES[0], seed, FEWER)
        for name in (name for name in VARIANTS if name.startswith("from RFT")):
            key = f"dpo-40/{TABLES[0]}/{name}/{seed}"
            cells.once(key, lambda few=few, name=name: few.variant(name))
    for count in COUNTS:
        for seed in SEEDS:
            alone = Lesson(count, seed)
            cells.once(f"sft/{count}/{seed}", lambda alone=alone: alone.measure(alone.sft()))
    for count in SHORT[1:]:
        for seed in SEEDS:
            alone = Lesson(count, seed, STEPS[SHORT[0]])
            cells.once(f"sft-short/{count}/{seed}", lambda alone=alone: alone.measure(alone.sft()))
    for count in COUNTS:
        for seed in SEEDS:
            measure(cells, count, seed, [CURVE])


if __name__ == "__main__":
    main()
