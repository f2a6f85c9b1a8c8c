"""FedKA and its parts on domains of digits, Group Effect, and cost over clients.

    python benchmarks/fedka.py        (about ten minutes on a core)

Shifted: scikit-learn's digits in five looks, four with a client each, the fifth the site's; a network
64-128-64 with linear head, batches of 32, Adam at 0.003, 30 rounds of 20 steps. Family: MNIST, MNIST over
photographs, scikit-learn's digits and drawn ones, 500 of each at 16x16, the same with 256-128-64. Accuracy in
per cent on digits of the site that nobody trained on, after the last round; nothing is chosen by it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from _beside import Beside
from _results import RESULTS, Cells
from _tables import beyond, head, number, spread, table

from dmkit.auxiliary.federated.fedka import DomainNet, Settings, federate
from dmkit.auxiliary.federated.fedka.domains import FAMILY, SHIFTS, digit_family, shifted
from dmkit.errors import TrainingError
from dmkit.training.arguments import TrainingArguments

SEEDS, ROUNDS, STEPS = (0, 1, 2), 30, 20
# Voting does not change what clients do (without feedback), so that a run with it is one without it, too: the
# first name is for the network before voting, the second for the one after it.
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("FedAvg", "voting only", {"mmd_weight": 0.0}),
    "local-1": ("matching, local, 1", "matching, local, 1, voting", {}),
    "literal": (
        "DANN, matching, global, 1",
        "the paper's form: DANN, matching, global, 1, voting",
        {"adversarial": True, "alignment": "global"},
    ),
    "local-0.3": ("matching, local, 0.3", "matching, local, 0.3, voting", {"mmd_weight": 0.3}),
    "global-0.3": (
        "matching, global, 0.3",
        "matching, global, 0.3, voting",
        {"mmd_weight": 0.3, "alignment": "global"},
    ),
    "dann": ("DANN", "DANN, voting", {"adversarial": True, "mmd_weight": 0.0}),
    "after": (
        "DANN, then matching, global, 1",
        "the released code's order: DANN, then matching, global, 1, voting",
        {"adversarial": True, "alignment": "global", "mmd_steps": STEPS},
    ),
    "feedback": ("", "matching, local, 1, voting fed back", {"feedback": True}),
}
COUNTS, COSTS = (4, 8, 16, 32), ("plain", "local-1", "literal")
ABOUT = {"what": " ".join(__doc__.split("\n\n")[2].split()), "rounds": ROUNDS, "steps": STEPS}
# The figures of an earlier small experiment in the same setting, before this code: mean and deviation.
EARLIER = {
    "FedAvg": "47.0 ± 3.7",
    "DANN": "39.5 ± 8.0",
    "matching, global, 0.3": "44.9 ± 2.4",
    "matching, local, 0.3": "56.2 ± 0.9",
    "voting only": "42.9 ± 2.3",
    "matching, local, 0.3, voting": "57.1 ± 1.7",
    "matching, local, 1, voting": "61.5 ± 0.5",
    "the paper's form: DANN, matching, global, 1, voting": "40.8 ± 3.6",
}


def training(folder: str, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        seed=seed,
        train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        adam_beta1=0.9,
        adam_weight_decay=0.0,
        max_grad_norm=0,
        checkpointing_steps=0,
        save_images_epochs=0,
        save_model_epochs=0,
        report_to="none",
    )


def measure(load: Callable[..., Any], target: str, run: str, seed: int) -> dict[str, Any]:
    """The last round of one federation, in per cent, and the average's accuracy every five rounds; or why the
    monitor of collapsing features stopped it.
    """
    clients, pool, test = load(target, seed)
    torch.manual_seed(seed)
    network = DomainNet((pool[0].numel(), 128, 64))
    settings = Settings(ROUNDS, STEPS, **RUNS[run][2])
    with tempfile.TemporaryDirectory() as folder:
        try:
            history = federate(network, clients, pool, settings, training(folder, seed), test=test).history
        except TrainingError as error:
            return {"stopped": str(error).split(":")[0]}
    last = history[-1]
    return {
        **{name: round(100 * last[name], 2) for name in ("global", "served", "group_effect")},
        "clients": round(100 * statistics.mean(last["clients"]), 2),
        "group_effect_all_rounds": round(100 * statistics.mean(h["group_effect"] for h in history), 2),
        "agreement": round(last["agreement"], 4),
        "variance": round(min(last["variance"]), 4),
        "curve": [round(100 * h["global"], 2) for h in history[4::5]],
    }


def cost(run: str, count: int) -> dict[str, float]:
    """Processor seconds of a round of five steps with so many clients of 32 digits, and megabytes sent."""
    domains, pool, _ = shifted("right")
    clients = [(x[k : k + 32], y[k : k + 32]) for k in range(count // 4) for x, y in domains]
    network = DomainNet()
    seconds = []
    for rounds in (1, 3):
        settings = Settings(rounds, 5, vote_steps=5, **RUNS[run][2])
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            history = federate(network, clients, pool, settings, training(folder, 0)).history
            seconds.append(time.process_time() - started)
    return {"seconds": round((seconds[1] - seconds[0]) / 2, 4), "MB": history[-1]["bytes"] / 1e6}


def exponent(costs: dict[int, float]) -> float:
    """The slope of log seconds over log clients, by least squares."""
    x, y = [math.log(k) for k in costs], [math.log(v) for v in costs.values()]
    return statistics.linear_regression(x, y).slope


# Tables and the plot


def of(cells: dict[str, Any], data: str, target: str, run: str) -> list[dict[str, Any]]:
    """The runs that came to their end, one a seed."""
    start = f"{data}/{target}/{run}/"
    return [c for key, c in cells.items() if key.startswith(start) and "stopped" not in c]


def accuracies(cells: dict[str, Any], data: str, target: str) -> dict[str, list[float]]:
    """By the name of a method, one number a seed."""
    found = {}
    for run, (before, after, _) in RUNS.items():
        for name, key in ((before, "global"), (after, "served")):
            if name and (figures := of(cells, data, target, run)):
                found[name] = [one[key] for one in figures]
    return found


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    """What is asked, what was measured, whether it is met."""
    found: dict[str, Any] = {}
    best, plain = "matching, local, 1, voting", "FedAvg"
    right = accuracies(cells, "shifted", "right")
    if best in right:
        gain = statistics.mean(right[best]) - statistics.mean(right[plain])
        apart = min(right[best]) - max(right[plain])
        found["turned right: local, voting, above FedAvg by 8 points"] = [gain, gain >= 8]
        found["turned right: its worst seed above FedAvg's best"] = [apart, apart > 0]
    both = [t for t in SHIFTS if t != "plain" and best in accuracies(cells, "shifted", t)]
    if len(both) == 4:
        there = [accuracies(cells, "shifted", t) for t in both]
        gain = statistics.mean(statistics.mean(t[best]) - statistics.mean(t[plain]) for t in there)
        found["the same, mean over four targets, by 5 points"] = [gain, gain >= 5]
    for weight in ("0.3", "1"):
        with_, without = f"matching, local, {weight}, voting", f"matching, local, {weight}"
        if with_ in right:
            change = statistics.mean(right[with_]) - statistics.mean(right[without])
            found[f"turned right: voting on top of matching at {weight} costs 2 points at most"] = [
                change,
                change >= -2,
            ]
    for target in FAMILY:
        there = accuracies(cells, "family", target)
        if best in there:
            pairs = [a - b for a, b in zip(there[best], there[plain], strict=True)]
            found[f"family, {target}: local, voting, minus FedAvg, pairs of a seed"] = [
                spread(pairs),
                beyond(pairs, "within spread"),
            ]
    return found


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    text = head(content, "FedKA")
    for data, targets in (("shifted", [t for t in reversed(SHIFTS) if t != "plain"]), ("family", FAMILY)):
        by_target = {t: accuracies(cells, data, t) for t in targets}
        by_target = {t: found for t, found in by_target.items() if found}
        if not by_target:
            continue
        names = list(dict.fromkeys(name for found in by_target.values() for name in found))
        earlier = [[EARLIER.get(name, "")] if data == "shifted" else [] for name in names]
        rows = [
            [name, *(spread(found[name]) if name in found else "" for found in by_target.values()), *last]
            for name, last in zip(names, earlier, strict=True)
        ]
        header = ["", *(f"target {t}" for t in by_target)]
        header += ["right, earlier experiment"] if data == "shifted" else []
        text += f"## {data.capitalize()}\n\n" + table(header, rows) + "\n"
    rows = []
    for run, (before, after, _) in RUNS.items():
        if figures := of(cells, "shifted", "right", run):
            rows.append(
                [
                    before or after,
                    *(spread([f[k] for f in figures]) for k in ("clients", "global", "group_effect")),
                    spread([f["group_effect_all_rounds"] for f in figures]),
                    number(statistics.mean(f["agreement"] for f in figures)),
                    number(statistics.mean(f["variance"] for f in figures)),
                ]
            )
    header = ["", "mean client", "average", "Group Effect", "over all rounds", "agreement of votes"]
    text += "## Group Effect, turned right\n\n" + table([*header, "least variance, of the start's"], rows)
    if stopped := [[key, c["stopped"]] for key, c in cells.items() if "stopped" in c]:
        text += "\n## Stopped by the monitor\n\n" + table(["target, form, seed", "why"], stopped)
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[name, number(v[0]), number(v[1])] for name, v in bars(cells).items()]
    )
    rows = []
    for run in COSTS:
        costs = {k: cells[f"cost/{run}/{k:02}"] for k in COUNTS if f"cost/{run}/{k:02}" in cells}
        if len(costs) == len(COUNTS):
            slope = exponent({k: c["seconds"] for k, c in costs.items()})
            rows.append([RUNS[run][1], *(number(c["seconds"]) for c in costs.values()), f"{slope:.2f}"])
    if rows:
        sent = " / ".join(number(cells[f"cost/plain/{k:02}"]["MB"]) for k in COUNTS)
        text += (
            "\n## Cost\n\nProcessor seconds of a round (5 steps, 5 of voting), the exponent of the number "
        )
        text += f"of clients; megabytes sent in it: {sent}.\n\n"
        text += table(["", *(f"{k} clients" for k in COUNTS), "exponent"], rows)
    draw(cells)
    return text + "\n![Accuracy over rounds, and cost over clients](fedka.png)\n"


def draw(cells: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14.5, 4), layout="constrained")
    for run, (before, _, _) in RUNS.items():
        curves = [one["curve"] for one in of(cells, "shifted", "right", run)]
        if before and curves:
            rounds = range(5, 5 * len(curves[0]) + 1, 5)
            means = [statistics.mean(v) for v in zip(*curves, strict=True)]
            (line,) = left.plot(rounds, means, "o-", label=before)
            for curve in curves:
                left.plot(rounds, curve, color=line.get_color(), alpha=0.25, lw=0.8)
    left.set(xlabel="round", ylabel="accuracy on the site, %", title="turned right, before voting")
    left.legend(fontsize=7)
    for k, (run, key, label) in enumerate(
        (
            ("plain", "global", "FedAvg"),
            ("local-1", "served", "local, voting"),
            ("literal", "served", "paper's form"),
        )
    ):
        shown = {t: [one[key] for one in of(cells, "family", t, run)] for t in FAMILY}
        shown = {t: values for t, values in shown.items() if values}
        places = [j + 0.25 * (k - 1) for j in range(len(shown))]
        deviations = [statistics.stdev(v) if len(v) > 1 else 0 for v in shown.values()]
        middle.bar(
            places,
            [statistics.mean(v) for v in shown.values()],
            0.25,
            yerr=deviations,
            capsize=3,
            label=label,
        )
        if k == 1:
            middle.set_xticks(range(len(shown)), list(shown))
    middle.set(ylabel="accuracy on the site, %", title="family: mean and deviation over seeds")
    middle.legend(fontsize=7)
    for run in COSTS:
        costs = {k: cells[f"cost/{run}/{k:02}"]["seconds"] for k in COUNTS if f"cost/{run}/{k:02}" in cells}
        if costs:
            right.loglog(list(costs), list(costs.values()), "o-", label=RUNS[run][1])
    right.set(xlabel="clients", ylabel="processor seconds a round")
    right.set_xticks(COUNTS, [str(k) for k in COUNTS])
    right.minorticks_off()
    right.legend(fontsize=7)
    figure.savefig(RESULTS / "fedka.png", dpi=110)
    plt.close(figure)


# What the abstract has, over baselines that it names.
PAPER = {"Digit-Five": "+8.8", "Office-Caltech10": "+3.5", "Amazon Review": "+0.7"}
OTHERS = {  # the reference's other targets, one seed: blurred, left, pale
    "FedAvg": ("91.3", "53.5", "81.9"),
    "matching, local, 1, voting": ("87.6", "77.9", "90.0"),
    "the paper's form: DANN, matching, global, 1, voting": ("91.0", "67.6", "49.5"),
}
WHY = {
    "turned right: local, voting, above": "The form that works; it is not the paper's.",
    "turned right: its worst": "Beyond the spread of both.",
    "the same, mean": "Blurred, which FedAvg knows already, gains least.",
    "turned right: voting on top of matching at 0.3": "Within the deviation of 5.8.",
    "turned right: voting on top of matching at 1": "Within the deviation of 3.6.",
    "family, mnist:": "Below FedAvg on average, within the deviation: nothing can be said.",
    "family, mnist-m:": "Above at every seed.",
    "family, optical:": "Above on average, not beyond the deviation.",
    "family, drawn:": "Below at every seed, by the voting: without it local matching is at FedAvg's.",
}


def beside(content: dict[str, Any]) -> Beside:
    cells, rows = content["cells"], []
    right = accuracies(cells, "shifted", "right")
    for name, reference in EARLIER.items():
        rows.append((f"turned right: {name}, %", spread(right[name]), reference, ""))
    for k, target in enumerate(("blurred", "left", "pale")):
        there = accuracies(cells, "shifted", target)
        for name, references in OTHERS.items():
            rows.append((f"{target}: {name}, %", spread(there[name]), references[k], ""))
    for target in FAMILY:
        there = accuracies(cells, "family", target)
        rows += [(f"family, {target}: {name}, %", spread(there[name]), "", "") for name in OTHERS]
    effect = [one["group_effect"] for one in of(cells, "shifted", "right", "plain")]
    rows.append(("Group Effect of FedAvg, points", spread(effect), "", ""))
    effect = [one["group_effect"] for one in of(cells, "shifted", "right", "literal")]
    rows.append(("Group Effect of the paper's form, points", spread(effect), "", "4 times the baseline's"))
    rows += [(f"{name}: gain, points", "not run", "", gain) for name, gain in PAPER.items()]
    found = bars(cells)
    why = {bar: next(text for start, text in WHY.items() if bar.startswith(start)) for bar in found}
    return Beside(
        rows,
        "The reference has the same looks and settings, three seeds turned right and one elsewhere; here "
        "there are three everywhere. "
        "Digit-Five, Office-Caltech10 and Amazon Review are not here; the family has MNIST and three that "
        "stand for others.",
        found,
        why,
    )


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("fedka", ABOUT)

    def federated(load: Callable[..., Any], data: str, targets: Any, runs: Any, seeds: Any) -> None:
        for seed in seeds:
            for target in targets:
                for run in runs:
                    key = f"{data}/{target}/{run}/{seed}"
                    cells.once(key, lambda t=target, r=run, s=seed: measure(load, t, r, s))

    federated(shifted, "shifted", ["right"], ("plain", "local-1", "literal"), SEEDS)
    for run in COSTS:
        for count in COUNTS:
            cells.once(f"cost/{run}/{count:02}", lambda r=run, c=count: cost(r, c))
    federated(shifted, "shifted", ["right"], RUNS, SEEDS)
    others = [t for t in SHIFTS if t not in ("plain", "right")]
    federated(shifted, "shifted", others, ("plain", "local-1", "literal"), SEEDS)
    federated(digit_family, "family", FAMILY, ("plain", "local-1", "literal"), SEEDS)


if __name__ == "__main__":
    main()
