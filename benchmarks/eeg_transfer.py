"""EEG transfer between two made hospitals that agree or not, over shares of labels; networks; cost.

    python benchmarks/eeg_transfer.py        (about ten minutes on a core)

Source: 240 recordings of 4 s, 21 channels at 100 Hz; target: 160, of which 10, 40 or all are labelled; tests
of 200 each, which nothing is chosen by. ShallowFBCSPNet with 10 filters, dense; AdamW, weight decay 5e-4,
cosine; 8 epochs of 32 recordings at 2e-3 on the source, 12 epochs of 16 on the target, at 2e-3 from random
weights and 5e-4 from the source's, last epoch; for other networks three times as many epochs. Balanced
accuracy in per cent. Where hospitals disagree, the source calls normal what the target calls abnormal. Of a
seed all strategies have the same recordings.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import RESULTS, Cells
from _tables import head, number, spread, table

from dmkit.auxiliary.timeseries.eeg_transfer import (
    CHANNELS,
    STRATEGIES,
    EEGNetwork,
    EEGPreprocessor,
    Transfer,
    fit,
    fraction_sweep,
    hospital,
    predict_proba,
    shortcut,
    similarity,
)
from dmkit.auxiliary.timeseries.eeg_transfer.networks import build
from dmkit.training.arguments import TrainingArguments

SEEDS, WINDOW, FRACTIONS = (0, 1, 2), 400, (1 / 16, 1 / 4, 1.0)
NETWORKS: dict[str, dict[str, Any]] = {
    "shallow": {"n_filters_time": 10, "n_filters_spat": 10, "final_conv_length": 12},
    # With dropout of a half before its batch norms, so narrow a Deep4Net has other statistics in eval mode.
    "deep4": {
        "n_filters_time": 8,
        "n_filters_spat": 8,
        "n_filters_2": 16,
        "n_filters_3": 32,
        "n_filters_4": 64,
        "drop_prob": 0.0,
    },
    "tcn": {"n_blocks": 4, "n_filters": 16, "kernel_size": 8},
    "eegnet": {"final_conv_length": 6},
}
BOTH = ("scratch", "finetune")
TIMES = {"tcn": 3, "deep4": 3, "eegnet": 3}  # as many epochs, since they learn slowly
SIZES, MINUTES = (32, 64, 128, 256, 512), (1, 2, 4, 8)
# Of an earlier small experiment with a generator of the same description, before this code: accuracy of
# windows, two seeds.
EARLIER = {
    ("agree", 10): "52.7 / 91.2", ("agree", 40): "53.4 / 92.4", ("agree", 160): "73.4 / 91.9",
    ("disagree", 10): "- / 14.1", ("disagree", 40): "- / 18.0", ("disagree", 160): "- / 58.1",
}  # fmt: skip
ABOUT = {"what": " ".join(__doc__.split("\n\n")[2].split())}


def training(folder: str, seed: int, **changes: Any) -> TrainingArguments:
    flags: dict[str, Any] = {
        "seed": seed,
        "num_epochs": 12,
        "train_batch_size": 16,
        "learning_rate": 5e-4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_weight_decay": 5e-4,
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**flags, "output_dir": folder, **changes})


def swept(
    seed: int, disagree: bool, name: str, fractions: Any, strategies: Any, **how: Any
) -> dict[str, Any]:
    """All figures of a sweep, in per cent."""
    times = TIMES.get(name, 1)
    flags = {"disagree": disagree}
    source, source_test = (
        hospital("source", 240, seed, **flags),
        hospital("source", 200, seed + 1000, **flags),
    )
    target, test = hospital("target", 160, seed), hospital("target", 200, seed + 1000)
    torch.manual_seed(seed)
    network = EEGNetwork.build(name, source.signal, WINDOW, **NETWORKS[name])
    with tempfile.TemporaryDirectory() as folder:
        flags = {"num_epochs": 8 * times, "train_batch_size": 32, "learning_rate": 2e-3}
        fit(network, source, training(f"{folder}/source", seed, **flags))
        report = fraction_sweep(
            network,
            target,
            test,
            training(f"{folder}/sweep", seed, num_epochs=12 * times),
            fractions=fractions,
            strategies=strategies,
            seeds=(seed,),
            transfer=Transfer(**how),
            rates={"scratch": 2e-3, "joint": 2e-3},
            source_train=source,
            source_test=source_test,
        )
        alike = {}
        for strategy in ("scratch", "finetune"):
            tuned = EEGNetwork.from_pretrained(
                Path(folder) / f"sweep/{strategy}-{fractions[-1]:g}-{seed}/network"
            )
            alike[strategy] = [round(v, 3) for v in similarity(network, tuned, test)]
    found: dict[str, Any] = {
        "source": _percent(report.source),
        "zero-shot": _percent(report.zero_shot),
        "shortcut": round(100 * shortcut(network, source_test, test), 1),
        "similarity": alike,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    for row in report.rows:
        cell = {"target": _percent(row), "source": round(100 * row["source_balanced_accuracy"], 1)}
        found[f"{row['strategy']}/{row['recordings']}"] = cell
    return found


def _percent(figures: dict[str, Any]) -> float:
    return round(100 * figures["balanced_accuracy"], 1)


def cost(count: int) -> dict[str, float]:
    """Processor seconds of an epoch, and of a decision on each of so many recordings of 4 s."""
    some = hospital("source", count)
    network = EEGNetwork.build("shallow", some.signal, WINDOW, **NETWORKS["shallow"])
    with tempfile.TemporaryDirectory() as folder:
        fit(network, some.select(range(32)), training(f"{folder}/warm", 0, num_epochs=1))
        started = time.process_time()
        fit(network, some, training(f"{folder}/timed", 0, num_epochs=1))
        trained = time.process_time()
        predict_proba(network, some)
    return {"epoch": round(trained - started, 3), "decisions": round(time.process_time() - trained, 3)}


def preprocessing(count: int) -> float:
    """Processor seconds of making so many recordings alike: 6 min of 21 channels at 250 Hz, 5 min kept."""
    import mne

    values = 3e-5 * np.random.default_rng(0).standard_normal((len(CHANNELS), 6 * 60 * 250))
    raw = mne.io.RawArray(values, mne.create_info(list(CHANNELS), 250.0, "eeg"), verbose="ERROR")
    EEGPreprocessor()(raw)
    started = time.process_time()
    for _ in range(count):
        EEGPreprocessor()(raw)
    return round(time.process_time() - started, 3)


def dense(name: str) -> dict[str, float]:
    """Processor seconds of a forward pass over 60 s, strided and dense; the best of three."""
    x, found = torch.randn(1, 21, 6000), {}
    for kind in ("strided", "dense"):
        network = build(name, 21, 2, 6000, dense=kind == "dense").eval()
        seconds = []
        with torch.no_grad():
            predictions = network(x).shape[2]
            for _ in range(3):
                started = time.process_time()
                network(x)
                seconds.append(time.process_time() - started)
        found |= {kind: round(min(seconds), 4), f"{kind} predictions": predictions}
    return found


# Tables and the plot


def of(cells: dict[str, Any], place: str, key: str, what: str = "target") -> dict[int, float]:
    """A figure of each seed."""
    found = {}
    for name, cell in cells.items():
        where, _, seed = name.rpartition("/")
        if where == place and key in cell:
            found[int(seed)] = cell[key][what] if isinstance(cell[key], dict) else cell[key]
    return found


def gains(cells: dict[str, Any], place: str, strategy: str, count: int) -> list[float]:
    """Over the training from scratch, seed by seed."""
    alone, there = of(cells, place, f"scratch/{count}"), of(cells, place, f"{strategy}/{count}")
    return [there[seed] - alone[seed] for seed in there if seed in alone]


COUNTS = (10, 40, 160)


def bars(cells: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """What is asked, what was measured, whether it is met."""
    found: dict[str, tuple[float, bool]] = {}
    gain = {n: statistics.mean(gains(cells, "agree/shallow", "finetune", n)) for n in COUNTS}
    for n in (10, 40):
        found[f"gain of fine-tuning at {n}, at least 20"] = gain[n], gain[n] >= 20
    worst = min(gains(cells, "agree/shallow", "finetune", 10))
    found["its worst seed at 10, above 0"] = worst, worst > 0
    over = statistics.mean(of(cells, "agree/shallow", "finetune/10").values()) - statistics.mean(
        of(cells, "agree/shallow", "zero-shot").values()
    )
    found["fine-tuning at 10 over the source as it is, at least 2"] = over, over >= 2
    less = gain[40] - gain[160]
    found["gain at 40 above that at 160"] = less, less > 0
    for n in (10, 40):
        worst = max(gains(cells, "disagree/shallow", "finetune", n))
        found[f"hospitals that disagree: the best seed at {n}, below 0"] = worst, worst < 0
    return found


def exponent(costs: dict[int, float]) -> float:
    """The slope of log seconds over log recordings, by least squares."""
    x, y = [math.log(k) for k in costs], [math.log(v) for v in costs.values()]
    return statistics.linear_regression(x, y).slope


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    text = head(content, "EEG transfer")
    for kind, title in (("agree", "Hospitals that agree"), ("disagree", "Hospitals that disagree")):
        place = f"{kind}/shallow"
        if not (start := list(of(cells, place, "source").values())):
            continue
        text += (
            f"## {title}\n\n{len(start)} seeds. The source's network on the source's test: {spread(start)}; "
        )
        text += f"as it is on the target's: {spread(list(of(cells, place, 'zero-shot').values()))}; "
        score = list(of(cells, place, "shortcut").values())
        text += f"hospitals told apart by its features: {spread(score)} (50 is chance).\n\n"
        rows = []
        for strategy in STRATEGIES:
            row = [strategy]
            for n in COUNTS:
                gain = gains(cells, place, strategy, n)
                said = f" ({statistics.mean(gain):+.1f})" if gain and strategy != "scratch" else ""
                row.append(spread(list(of(cells, place, f"{strategy}/{n}").values())) + said)
            kept = list(of(cells, place, f"{strategy}/160", "source").values())
            rows.append([*row, spread(kept)])
        header = ["", *(f"{n} recordings" for n in COUNTS), "on the source's test after 160"]
        earlier = ", ".join(f"{n}: {EARLIER[kind, n]}" for n in COUNTS)
        text += table(header, rows) + f"\nIn parentheses the mean gain over scratch. Before: {earlier} "
        text += "(scratch / fine-tuned).\n\n"
    kept, moved = (
        list(of(cells, f"{place}/shallow", "finetune/10").values()) for place in ("norms", "agree")
    )
    if kept:
        text += (
            f"Fine-tuned on 10 recordings with the source's statistics of batch norms kept: {spread(kept)}; "
        )
        text += f"with new ones {spread(moved)}.\n\n"
    rows = []
    for name in NETWORKS:
        place = f"agree/{name}"
        if values := of(cells, place, "finetune/10"):
            sizes = list(of(cells, place, "parameters").values())
            gain = gains(cells, place, "finetune", 10)
            columns = ("source", "zero-shot", "scratch/10", "finetune/10")
            row = [
                name,
                f"{sizes[0]:,}",
                len(values),
                *(spread(list(of(cells, place, c).values())) for c in columns),
            ]
            alike = [cells[f"{place}/{s}"]["similarity"] for s in sorted(of(cells, place, "source"))]
            shown = " / ".join(
                ", ".join(f"{statistics.mean(v):.2f}" for v in zip(*(a[k] for a in alike), strict=True))
                for k in ("finetune", "scratch")
            )
            rows.append([*row, f"{statistics.mean(gain):+.1f} (worst {min(gain):+.1f})", shown])
    header = [
        "network",
        "parameters",
        "seeds",
        "source",
        "target as it is",
        "scratch, 10",
        "fine-tuned, 10",
        "gain",
    ]
    text += "## Networks\n\n" + table([*header, "CKA to the source's, fine-tuned / scratch"], rows)
    text += "\nCKA block by block, of the fits with the most recordings.\n"
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[name, number(v[0]), number(v[1])] for name, v in bars(cells).items()]
    )
    costs = {n: cells[f"cost/{n:04}"] for n in SIZES if f"cost/{n:04}" in cells}
    made = {n: cells[f"preprocessing/{n}"] for n in MINUTES if f"preprocessing/{n}" in cells}
    if len(costs) > 1 and len(made) > 1:
        curves = {k: {n: c[k] for n, c in costs.items()} for k in ("epoch", "decisions")}
        text += "\n## Cost\n\nProcessor seconds. Exponents of the number of recordings: "
        text += ", ".join(f"{k} {exponent(curve):.2f}" for k, curve in curves.items())
        text += f", preprocessing {exponent(made):.2f}.\n\n"
        text += table(["recordings of 4 s", *map(str, costs)], [[k, *c.values()] for k, c in curves.items()])
        text += "\n" + table(["recordings of 6 min", *map(str, made)], [["preprocessing", *made.values()]])
    rows = [[key.partition("/")[2], *c.values()] for key, c in cells.items() if key.startswith("dense/")]
    if rows:
        text += "\n" + table(["60 s, forward", "strided, s", "predictions", "dense, s", "predictions"], rows)
    draw(cells, costs)
    return text + "\n![Balanced accuracy over labelled recordings, and cost](eeg_transfer.png)\n"


def draw(cells: dict[str, Any], costs: dict[int, Any]) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, kind in zip(axes, ("agree", "disagree"), strict=False):
        for strategy in [name for name in STRATEGIES if name != "partial"]:  # here it is the linear probe
            points = [list(of(cells, f"{kind}/shallow", f"{strategy}/{n}").values()) for n in COUNTS]
            if all(points):
                mean = [statistics.mean(p) for p in points]
                error = [statistics.stdev(p) if len(p) > 1 else 0 for p in points]
                axis.errorbar(COUNTS, mean, error, marker="o", capsize=3, label=strategy)
        if zero := list(of(cells, f"{kind}/shallow", "zero-shot").values()):
            axis.axhline(statistics.mean(zero), color="grey", ls=":", label="source as it is")
        axis.set(
            xscale="log",
            xlabel="labelled recordings of the target",
            title=f"hospitals that {kind}",
            ylim=(0, 102),
        )
        axis.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes[0].set_ylabel("balanced accuracy, %")
    axes[0].legend(fontsize=8)
    for key in ("epoch", "decisions"):
        axes[2].loglog(list(costs), [c[key] for c in costs.values()], "o-", label=key)
    axes[2].set_xticks(list(costs), [str(n) for n in costs])
    axes[2].xaxis.set_minor_locator(NullLocator())
    axes[2].set(xlabel="recordings", ylabel="processor seconds", title="cost")
    axes[2].legend(fontsize=8)
    figure.savefig(RESULTS / "eeg_transfer.png", dpi=110)
    plt.close(figure)


def main(parts: list[str] | None = None) -> None:
    """Measures all, or cells that start with one of `parts`."""
    torch.set_num_threads(1)
    cells = Cells("eeg_transfer", ABOUT)
    wanted = tuple(parts or [""])
    for seed in SEEDS:
        for kind in ("agree", "disagree"):
            if (key := f"{kind}/shallow/{seed}").startswith(wanted):
                cells.once(
                    key, lambda s=seed, k=kind: swept(s, k == "disagree", "shallow", FRACTIONS, STRATEGIES)
                )
    for seed in SEEDS:
        if (key := f"norms/shallow/{seed}").startswith(wanted):
            cells.once(key, lambda s=seed: swept(s, False, "shallow", FRACTIONS[:1], BOTH, freeze_norm=True))
    for n in SIZES:
        if (key := f"cost/{n:04}").startswith(wanted):
            cells.once(key, lambda n=n: cost(n))
    for n in MINUTES:
        if (key := f"preprocessing/{n}").startswith(wanted):
            cells.once(key, lambda n=n: preprocessing(n))
    for name in ("shallow", "deep4", "eegnet"):
        if (key := f"dense/{name}").startswith(wanted):
            cells.once(key, lambda n=name: dense(n))
    for name in ("tcn", "deep4", "eegnet"):
        for seed in SEEDS:
            if (key := f"agree/{name}/{seed}").startswith(wanted):
                cells.once(key, lambda s=seed, n=name: swept(s, False, n, FRACTIONS[:1], BOTH))


if __name__ == "__main__":
    main(sys.argv[1:])
