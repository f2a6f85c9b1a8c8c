"""CUBER beside TRGP, GPM and fine-tuning: digits in permuted order of pixels, related tasks.

"permuted": five tasks of scikit-learn's digits, another order of pixels in each; MLP 64-100-100-10 without
bias, one head, SGD 0.06 (scale matrices 0.005), batch 16, 40 epochs, 300 examples, energy 0.97.
"alternating": two orders in turn, 60 new examples in each task, 120 epochs. Accuracies in per cent.

Bars, of means over the seeds of "permuted", for CUBER with eps2 = 0.2: ACC at least GPM's + 4, at least
fine-tuning's + 25 and within 1 of TRGP's; BWT at least GPM's + 5.

An image model is in `benchmarks/cuber_emoji.py`.

    python benchmarks/cuber.py       (about six minutes on a core)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _beside import Beside
from _results import RESULTS, Cells
from _tables import few, head, spread, table
from torch.utils.data import DataLoader

from dmkit.auxiliary.continual._streams import permuted_digits
from dmkit.auxiliary.continual.cuber.training import Arguments, build_learner, run
from dmkit.training.arguments import TrainingArguments
from dmkit.training.classifying import ClassificationTask
from dmkit.training.networks import MLP
from dmkit.training.trainer import Trainer

SEEDS = (0, 1, 2, 3, 4)
METHODS: dict[str, dict[str, Any]] = {
    "fine-tuning": {"learner": "finetune"},
    "GPM": {"learner": "gpm"},
    "TRGP": {"learner": "trgp"},
    "CUBER, eps2 0.2": {"learner": "cuber", "eps2": 0.2},
    "CUBER, eps2 0": {"learner": "cuber", "eps2": 0.0},
}
STREAMS: dict[str, dict[str, Any]] = {
    "permuted": {"examples": 300, "num_epochs": 40, "seeds": (0, 1, 2)},
    "alternating": {"examples": 60, "num_epochs": 120, "seeds": SEEDS},
}
PUBLISHED = {"permuted": "MNIST, ten tasks: GPM 93.9 / -3, TRGP 96.3 / -0.8, CUBER 97.3 / -0.02"}
REGIMES = ("CUBER, eps2 0.2", "CUBER, eps2 0")


def training(folder: str, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(output_dir=folder, **{**settings, **changes})


def on_digits(folder: str, stream: str, seed: int) -> TrainingArguments:
    return training(
        folder,
        seed=seed,
        train_batch_size=16,
        num_epochs=STREAMS[stream]["num_epochs"],
        learning_rate=0.06,
        optimizer="sgd",
        max_grad_norm=0.0,
    )


def digits(method: str, stream: str, seed: int) -> dict[str, Any]:
    """One run through a stream."""
    given = Arguments(stream=stream, examples=STREAMS[stream]["examples"], **METHODS[method])
    with tempfile.TemporaryDirectory() as folder:
        found = run(given, on_digits(folder, stream, seed))
    return {key: found[key] for key in ("ACC", "BWT", "kept_numbers", "accuracies")}


def opened(rule: Any) -> int:
    """Pairs of a layer and an old task that are in regime 3 now."""
    return sum(map(len, rule.still_open().values())) if hasattr(rule, "still_open") else 0


def regimes(method: str, stream: str, seed: int) -> dict[str, Any]:
    """A run that counts the pairs of a layer and an old task in regime 3 as tasks start and end."""
    given = Arguments(stream=stream, examples=STREAMS[stream]["examples"], **METHODS[method])
    torch.manual_seed(seed)
    model = MLP([64, *given.hidden, 10], bias=False)
    learner: Any = build_learner(given, model)
    counts = {"pairs": 0, "related": 0, "regime 3 at the start": 0, "regime 3 at the end": 0}
    tasks = permuted_digits(given.tasks, given.examples, seed, alternating=stream == "alternating")
    for t, rows in enumerate(data.rows() for data in tasks):
        task, batches = ClassificationTask(model), list(DataLoader(rows, batch_size=128))
        guarded, rule = learner.begin_task(task, batches)
        at_start = opened(rule)
        with tempfile.TemporaryDirectory() as folder:
            Trainer(guarded, rows, on_digits(folder, stream, seed), rule=rule).train()
        counts["regime 3 at the start"] += at_start
        counts["regime 3 at the end"] += opened(rule)
        learner.end_task(batches)
        counts["pairs"] += t * len(learner.layers)
        counts["related"] += sum(len(found) for found in learner.tasks[t].regimes.values())
    return counts


def of(cells: Mapping[str, Any], stream: str, method: str, key: str) -> list[float]:
    prefix = f"{stream}/{method}/seed="
    return [figures[key] for name, figures in cells.items() if name.startswith(prefix)]


def summarise(cells: Cells) -> None:
    """Whether the bars are met."""
    known = cells.read()
    acc = {name: mean(of(known, "permuted", name, "ACC")) for name in METHODS}
    bwt = {name: mean(of(known, "permuted", name, "BWT")) for name in METHODS}
    cuber = "CUBER, eps2 0.2"
    bars = {
        "ACC >= GPM + 4": acc[cuber] - acc["GPM"] - 4,
        "ACC >= fine-tuning + 25": acc[cuber] - acc["fine-tuning"] - 25,
        "ACC within 1 of TRGP": 1 - abs(acc[cuber] - acc["TRGP"]),
        "BWT >= GPM + 5": bwt[cuber] - bwt["GPM"] - 5,
    }
    cells.record("bars", {name: {"margin": round(by, 2), "met": by >= 0} for name, by in bars.items()})


# The page


def draw(content: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = content["cells"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
    for axis, stream in zip(axes, STREAMS, strict=True):
        for name in METHODS:
            runs = of(cells, stream, name, "accuracies")
            if runs:
                first = [mean(run[t][0] for run in runs) for t in range(5)]
                axis.plot(range(1, 6), first, marker="o", label=name)
        axis.set(
            title=f"first task, {stream}", xlabel="tasks learned", ylabel="accuracy, %", xticks=range(1, 6)
        )
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def render(content: dict[str, Any]) -> str:
    """The results as Markdown; draws their picture."""
    cells = content["cells"]
    draw(content, RESULTS / "cuber.png")
    text = head(content, "CUBER, TRGP and GPM")
    for stream in STREAMS:
        rows = []
        for name in METHODS:
            if acc := of(cells, stream, name, "ACC"):
                bwt = of(cells, stream, name, "BWT")
                kept = few([float(v) for v in of(cells, stream, name, "kept_numbers")])
                rows.append([name, len(acc), spread(acc), spread(bwt), kept])
        text += f"## {stream}\n\n" + table(["", "seeds", "ACC, %", "BWT", "numbers kept"], rows) + "\n"
        if stream in PUBLISHED:
            text += f"The paper, on {PUBLISHED[stream]}.\n\n"
    if "bars" in cells:
        rows = [[name, f["margin"], "yes" if f["met"] else "no"] for name, f in cells["bars"].items()]
        text += table(["bar", "margin", "met"], rows) + "\n"
    text += "## Regimes: pairs of a layer and an old task, over a run\n\n"
    counts = {key.split("/", 1)[1]: f for key, f in cells.items() if key.startswith("regimes/")}
    names = ("pairs", "related", "regime 3 at the start", "regime 3 at the end")
    text += table(["", *names], [[key, *(f.get(name, "") for name in names)] for key, f in counts.items()])
    text += "\n"
    return text + "\n![accuracy of the first task](cuber.png)\n"


# Stream, method -> ACC / BWT of the reference's small experiment, and of the paper on permuted MNIST.
REFERENCE = {
    ("permuted", "fine-tuning"): ("48.9 / -54.0", ""),
    ("permuted", "GPM"): ("81.6 / -9.5", "93.91 / -3"),
    ("permuted", "TRGP"): ("89.2 / -1.9", "96.34 / -0.8"),
    ("permuted", "CUBER, eps2 0.2"): ("89.2 / -2.0", ""),
    ("permuted", "CUBER, eps2 0"): ("86.3 / -5.9", "97.25 / -0.02"),
    ("alternating", "fine-tuning"): ("BWT -1.0", ""),
    ("alternating", "GPM"): ("BWT +3.2", ""),
    ("alternating", "TRGP"): ("BWT +2.2", ""),
    ("alternating", "CUBER, eps2 0.2"): ("BWT +2.0", ""),
}
WHY = {
    "ACC >= GPM + 4": "What scale matrices add; TRGP has them too.",
    "ACC >= fine-tuning + 25": "Plain fine-tuning forgets half of what it learned.",
    "ACC within 1 of TRGP": "Also the limit of what is found: the paper's step beyond TRGP is not seen.",
    "BWT >= GPM + 5": "Met, but negative: old tasks are forgotten less, none is improved.",
}


def beside(content: dict[str, Any]) -> Beside:
    cells, rows = content["cells"], []
    for (stream, method), (reference, paper) in REFERENCE.items():
        acc, bwt = (spread(of(cells, stream, method, key)) for key in ("ACC", "BWT"))
        rows.append((f"{stream}, {method}: ACC / BWT, %", f"{acc} / {bwt}", reference, paper))
    return Beside(
        rows,
        "The reference is a separate script of the same streams, three seeds (alternating: five) of its "
        "own: its CUBER with ε₂ = 0 loses 3 points to TRGP, ours nearly none. The paper's figures are of "
        "ten tasks on MNIST, many more examples and an MLP of 784 inputs; its other data (Split "
        "CIFAR-100: GPM 72.48, TRGP 74.46, CUBER 75.54) are not here. The margins of the second table "
        "are what is left beyond what was asked.",
        {name: (f["margin"], f["met"]) for name, f in cells["bars"].items()},
        WHY,
    )


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("cuber", {"what": __doc__.strip().splitlines()[0]})
    for stream, kind in STREAMS.items():
        for seed in kind["seeds"]:
            for method in METHODS:
                cells.once(
                    f"{stream}/{method}/seed={seed}",
                    lambda m=method, s=stream, n=seed: digits(m, s, n),  # type: ignore[misc]
                )
    for stream in STREAMS:
        for method in REGIMES:
            cells.once(
                f"regimes/{stream}/{method}/seed=0",
                lambda m=method, s=stream: regimes(m, s, 0),  # type: ignore[misc]
            )
    summarise(cells)


if __name__ == "__main__":
    main()
