"""BT² on scikit-learn's digits under noise: new queries in an old gallery, and a chain of architectures.

    python benchmarks/bt2.py        (five minutes on a core)

The old model knows classes 0 to 3, the new ones all ten. Every item is a query against all others.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from _results import RESULTS, Cells
from _tables import head, number, spread, table

from dmkit.auxiliary.retrieval.bt2.training import Arguments, chain, run
from dmkit.training.arguments import TrainingArguments

SEEDS = range(6)
EXTRA = [0, 2, 8]
KINDS = ("mlp", "convnet", "mlp")
RECIPE = Path(__file__).parents[1] / "scripts" / "recipes" / "bt2.yaml"
PAIRS = ("old/old", "new/old", "new/new")
ABOUT = {
    "what": "Digits under noise (deviation 0.25), 500 to train and 500 to search; the old model knows "
    "classes 0 to 3. Retrieval by class in %, mean ± deviation over seeds, query model / gallery model; the "
    "old gallery is never computed anew.",
    "recipe": "scripts/recipes/bt2.yaml",
    "chain": list(KINDS),
}


def training(seed: int, folder: str) -> TrainingArguments:
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    own = {"method", "extra_dims", "output_dir"}
    values = {key: value for key, value in recipe.items() if key not in own}
    return TrainingArguments(**{**values, "seed": seed, "output_dir": folder})


def measure(name: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if name == "chain":
            return chain(Arguments(extra_dims=[8]), training(seed, folder), KINDS)
        return run(Arguments(extra_dims=EXTRA), training(seed, folder))


def runs(cells: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [figures for key, figures in cells.items() if key.startswith(f"{name}/")]


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    found = runs(cells, "steps")

    def mean(model: str, pair: str) -> float:
        return 100 * statistics.mean(one[model][pair]["map"] for one in found)

    rising = [mean(f"bt2_{m}", "new/new") for m in EXTRA]
    alone = mean("independent", "new/old")
    gained = mean("bt2_8", "new/old") - mean("bct", "old/old")
    beside = {pair: mean("bt2_8", pair) - mean("bct", pair) for pair in PAIRS}
    return {
        "independent new/old mAP < 25": [alone, alone < 25],
        "BT² (m = 8) new/old mAP ≥ old/old + 3": [gained, gained >= 3],
        "BT² (m = 8) new/old mAP ≥ BCT - 1": [beside["new/old"], beside["new/old"] >= -1],
        "BT² (m = 8) new/new mAP ≥ BCT + 1": [beside["new/new"], beside["new/new"] >= 1],
        "BT² new/new mAP rises with m": [rising, rising == sorted(rising)],
    }


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    found = runs(cells, "steps")
    text = head(content, "BT²")
    rows = []
    for model in found[0]:
        row = [model.replace("_", ", m = ")]
        for pair in PAIRS:
            for figure in ("top1", "map"):
                row.append(spread([100 * one[model][pair][figure] for one in found]))
        rows.append(row)
    header = ["", *(f"{pair} {figure}" for pair in PAIRS for figure in ("top-1", "mAP"))]
    text += f"{len(found)} seeds.\n\n" + table(header, rows)
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[k, number(v[0]), number(v[1])] for k, v in bars(cells).items()]
    )
    chains = runs(cells, "chain")
    text += f"\n## A chain: {' → '.join(content['about']['chain'])}, mAP of model i in gallery j\n\n"
    rows = [
        [name, *(spread([100 * one[name][pair] for one in chains]) for pair in chains[0][name])]
        for name in chains[0]
    ]
    text += table(["", *chains[0]["bt2"]], rows)
    draw(found, chains)
    return text + "\n![BT²](bt2.png)\n"


def draw(found: list[dict[str, Any]], chains: list[dict[str, Any]]) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = {
        "independent": "independent",
        "bct": "BCT",
        "extra_8": "BCT + 8 dims",
        **{f"bt2_{m}": f"BT², m = {m}" for m in EXTRA},
    }
    for name, label in names.items():
        points = [[100 * one[name][pair]["map"] for one in found] for pair in ("new/old", "new/new")]
        (line,) = left.plot(*points, ".", alpha=0.4)
        left.plot(*(statistics.mean(p) for p in points), "o", ms=10, color=line.get_color(), label=label)
    before = 100 * statistics.mean(one["bct"]["old/old"]["map"] for one in found)
    left.axvline(before, color="grey", ls="--", lw=1, label="old queries, old gallery")
    left.set(xlabel="mAP, new queries in the old gallery, %", ylabel="mAP, new queries, new gallery, %")
    left.legend(fontsize=8)
    pairs = list(chains[0]["bt2"])
    for k, (name, label) in enumerate({"independent": "independent", "bct": "BCT", "bt2": "BT²"}.items()):
        heights = [100 * statistics.mean(one[name][pair] for one in chains) for pair in pairs]
        right.bar([x + 0.27 * (k - 1) for x in range(len(pairs))], heights, 0.27, label=label)
    right.set_xticks(range(len(pairs)), pairs)
    right.set(xlabel="model of the query / of the gallery, in a chain", ylabel="mAP, %")
    right.legend(fontsize=8)
    figure.savefig(RESULTS / "bt2.png", dpi=110)
    plt.close(figure)


def main() -> None:
    cells = Cells("bt2", ABOUT)
    for seed in SEEDS:
        for name in ("steps", "chain"):
            cells.once(f"{name}/{seed}", lambda name=name, seed=seed: measure(name, seed))


if __name__ == "__main__":
    main()
