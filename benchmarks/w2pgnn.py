"""W2PGNN: which pair of domains a target was mixed from, what is out of scope, and what transfer was worth.

Domains are graphons 0 (product), 1 (exponential), 4 (logistic) and 8 (logarithm of the maximum), 15 graphs of
120 nodes each, estimated at 20 x 20 by sorting and averaging. A target is 15 graphs of 0.8 of one and 0.2 of
another; each of the 12 ordered pairs is to be found among 6. Transfer: a GCN learns links of a source, then a
tenth of a target's nodes, beside one that did not; gain is the difference in test accuracy, in points.

    python -m dmkit.data.packages && python benchmarks/w2pgnn.py        (ten minutes on a core)
"""

from __future__ import annotations

import statistics as st
import tempfile
import time
import warnings
from functools import partial
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from _results import RESULTS, Cells
from _tables import few, head, number, table

from dmkit.auxiliary.graphs.w2pgnn import (
    Bases,
    estimate,
    fit,
    graphon,
    gromov_wasserstein,
    noise_floor,
    sample,
    statistics,
)
from dmkit.auxiliary.graphs.w2pgnn.training import Arguments, run
from dmkit.data.packages import debian_graph
from dmkit.training.arguments import TrainingArguments

SEEDS, DOMAINS, RESOLUTION = (0, 1, 2), (0, 1, 4, 8), 20
COUNT, NODES = 15, 120
PREDICTIONS = ("feasibility", "statistics")
ABOUT = {
    "what": " ".join(__doc__.split("\n\n")[1].split()),
    "paper": "no rank correlation is known to us; ROC-AUC of models pre-trained on the selected data, as "
    "others read Cao et al. 2023: BACE 73.5 (graph statistics 71.5, all data 74.9), BBBP 65.5 (62.4, 62.7)",
}


def drawn(
    W: np.ndarray, generator: torch.Generator, count: int = COUNT, nodes: int = NODES
) -> list[np.ndarray]:
    return [sample(W, nodes, generator)[0] for _ in range(count)]


def select(seed: int) -> dict[str, Any]:
    """For each target: the pair that each way finds, and the fitted weight of the larger part."""
    generator = torch.Generator().manual_seed(seed)
    W = {k: graphon(k) for k in DOMAINS}
    graphs = {k: drawn(W[k], generator) for k in DOMAINS}
    shapes = {k: estimate(graphs[k], RESOLUTION) for k in DOMAINS}
    tables = {k: np.mean([statistics(g) for g in graphs[k]], axis=0) for k in DOMAINS}
    deviation = np.std(list(tables.values()), axis=0)
    pairs = list(combinations(DOMAINS, 2))
    found: dict[str, Any] = {"fitted": 0, "uniform mean": 0, "graph statistics": 0, "weights": []}
    for i, j in permutations(DOMAINS, 2):
        target = drawn(0.8 * W[i] + 0.2 * W[j], generator)
        D, own = estimate(target, RESOLUTION), np.mean([statistics(g) for g in target], axis=0)
        fits = {
            pair: fit(Bases("domain", tuple(map(str, pair)), np.stack([shapes[k] for k in pair])), D)
            for pair in pairs
        }
        truth = (min(i, j), max(i, j))
        distances = {
            "fitted": {pair: f.distance for pair, f in fits.items()},
            "uniform mean": {pair: f.mean_distance for pair, f in fits.items()},
            "graph statistics": {
                (a, b): np.linalg.norm(((tables[a] + tables[b]) / 2 - own) / deviation) for a, b in pairs
            },
        }
        for way, by_pair in distances.items():
            found[way] += int(min(pairs, key=lambda pair, d=by_pair: d[pair]) == truth)
        found["weights"].append(round(fits[truth].weights[str(i)], 4))
    return found


def scope(seed: int) -> dict[str, float]:
    """Distances to targets inside and outside the span of graphons 1, 6 and 8."""
    generator = torch.Generator().manual_seed(seed)
    numbers = (1, 6, 8)
    shapes = np.stack([estimate(drawn(graphon(k), generator), RESOLUTION) for k in numbers])
    bases = Bases("domain", tuple(map(str, numbers)), shapes)
    targets = {
        "mixture": np.tensordot([0.2, 0.5, 0.3], np.stack([graphon(k) for k in numbers]), 1),
        "dense (4)": graphon(4),
        "two blocks (11)": graphon(11),
        "thin (0.2 of 1)": 0.2 * graphon(1),
    }
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two blocks are what it warns of
        for name, W in targets.items():
            graphs = drawn(W, generator)
            found[name] = round(fit(bases, estimate(graphs, RESOLUTION)).distance, 4)
            if name == "mixture":
                found["noise floor"] = round(noise_floor(graphs, RESOLUTION), 4)
    return found


def estimator(seed: int) -> dict[str, float]:
    """Distance of estimates from ten graphs of 200 nodes to the truth."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(13):
            shape = estimate(drawn(graphon(k), generator, 10, 200), RESOLUTION)
            found[str(k)] = round(gromov_wasserstein(shape, graphon(k, RESOLUTION)).distance, 4)
    return found


def exact() -> dict[str, Any]:
    """Weights of a mixture whose bases are known."""
    bases = Bases("domain", ("1", "4", "8"), np.stack([graphon(k, 40) for k in (1, 4, 8)]))
    truth = np.array([0.2, 0.5, 0.3])
    found = fit(bases, bases.mixture(truth))
    error = float(np.abs(np.array(list(found.weights.values())) - truth).max())
    return {"largest error": error, "distance": found.distance, "uniform": found.mean_distance}


def transfer(graphs: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = TrainingArguments(
            output_dir=folder,
            seed=seed,
            train_batch_size=10**6,
            max_train_steps=60,
            learning_rate=0.01,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            adam_beta1=0.9,
            max_grad_norm=0,
            checkpointing_steps=0,
            save_images_epochs=0,
            save_model_epochs=0,
            report_to="none",
        )
        figures = run(Arguments(graphs=graphs, normalize=graphs == "debian"), training)
    for row in figures["pairs"]:
        for key in ("feasibility", "statistics", "alone", "gain"):
            row[key] = round(row[key], 4)
    return figures


def slope(x: Any, y: Any) -> float:
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def cost() -> dict[str, Any]:
    """Processor seconds by size: of an estimate, of nodes and of graphs, and of one distance."""

    def seconds(work: Any) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    generator = torch.Generator().manual_seed(0)
    W = graphon(1)
    nodes, counts, resolutions = (100, 200, 400, 800), (4, 8, 16, 32), (10, 20, 40, 80)
    large = {n: drawn(W, generator, 1, n) for n in nodes}
    many = drawn(W, generator, max(counts), 100)
    by_nodes = [seconds(partial(estimate, large[n], RESOLUTION)) for n in nodes]
    by_count = [seconds(partial(estimate, many[:c], RESOLUTION)) for c in counts]
    by_resolution = [seconds(partial(gromov_wasserstein, graphon(1, r), graphon(4, r))) for r in resolutions]
    found: dict[str, Any] = {}
    for name, (x, y) in {
        "nodes": (nodes, by_nodes),
        "graphs": (counts, by_count),
        "resolution": (resolutions, by_resolution),
    }.items():
        found[name] = {"at": list(x), "seconds": y, "exponent": slope(x, y)}
    data = debian_graph()
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate([data], 32)
    found["all of Debian"] = {"nodes": data.num_nodes, "seconds": round(time.process_time() - start, 2)}
    return found


# Tables and the plot


def collect(cells: dict[str, Any], prefix: str) -> list[Any]:
    return [figures for key, figures in cells.items() if key.startswith(f"{prefix}/")]


def correlations(cells: dict[str, Any], graphs: str) -> dict[str, dict[str, list[float]]]:
    runs = collect(cells, f"transfer/{graphs}")
    where = ("all pairs", "within targets")
    found = {p: {w: [run["rank correlation"][p][w] for run in runs] for w in where} for p in PREDICTIONS}
    return {
        p: {w: [v for v in values if v is not None] for w, values in of.items()} for p, of in found.items()
    }


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"mixture of known bases: error of weights < 0.01": None}
    error = cells["exact"]["largest error"]
    found["mixture of known bases: error of weights < 0.01"] = [error, error < 0.01]
    if runs := collect(cells, "select"):
        m = {way: st.mean(run[way] for run in runs) for way in ("fitted", "uniform mean", "graph statistics")}
        found["pairs found of 12, mean over seeds ≥ 9"] = [round(m["fitted"], 2), m["fitted"] >= 9]
        lead = m["fitted"] - max(m["uniform mean"], m["graph statistics"])
        found["above both baselines by ≥ 3"] = [round(lead, 2), lead >= 3]
        off = max(abs(w - 0.8) for run in runs for w in run["weights"])
        found["weight of the larger part, largest error ≤ 0.06"] = [round(off, 3), off <= 0.06]
    if runs := collect(cells, "scope"):
        ratio = min(
            run[k] / run["mixture"] for run in runs for k in run if k not in ("mixture", "noise floor")
        )
        found["out of scope: above the mixture by a factor > 5"] = [round(ratio, 2), ratio > 5]
    if runs := collect(cells, "estimator"):
        worst = max(run[str(k)] for run in runs for k in range(9))
        found["estimates of graphons 0 to 8 < 0.05"] = [worst, worst < 0.05]
    for graphs in ("graphons", "debian"):
        if collect(cells, f"transfer/{graphs}"):
            value = st.mean(correlations(cells, graphs)["feasibility"]["within targets"])
            found[f"transfer, {graphs}: rank correlation within targets > 0"] = [round(value, 3), value > 0]
    return found


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    text = head(content, "W2PGNN") + f"Paper, not measured here: {content['about']['paper']}.\n\n"
    if runs := collect(cells, "select"):
        ways = ("fitted", "uniform mean", "graph statistics")
        text += "## Pairs found of 12; chance finds 2\n\n" + table(
            ["", *(f"seed {k}" for k in range(len(runs)))],
            [[way, *(run[way] for run in runs)] for way in ways],
        )
        weights = [w for run in runs for w in run["weights"]]
        text += (
            f"\nFitted weight of the larger part (truth 0.8): {min(weights):.3f} to {max(weights):.3f}.\n\n"
        )
    if runs := collect(cells, "scope"):
        text += "## Distance to mixtures of graphons 1, 6 and 8\n\n"
        text += table(["target", "distance"], [[k, few([run[k] for run in runs])] for k in runs[0]])
    if runs := collect(cells, "estimator"):
        text += "\n## Distance of estimates to the truth\n\n"
        text += table(["graphon", *runs[0]], [["", *(few([run[k] for run in runs]) for k in runs[0])]])
    rows = []
    for graphs in ("graphons", "debian"):
        runs = collect(cells, f"transfer/{graphs}")
        for key in PREDICTIONS if runs else ():
            found = correlations(cells, graphs)[key]
            rows.append(
                [graphs, len(runs[0]["pairs"]), key, few(found["all pairs"]), few(found["within targets"])]
            )
    if rows:
        text += "\n## Spearman's rank correlation with the gain of pre-training\n\n"
        text += "Within targets: sources of one target are ranked, the mean over targets.\n\n"
        text += table(["graphs", "pairs", "prediction", "all pairs", "within targets"], rows)
        gains = [
            [g, few([100 * row["gain"] for run in collect(cells, f"transfer/{g}") for row in run["pairs"]]),
             few([100 * row["alone"] for run in collect(cells, f"transfer/{g}") for row in run["pairs"]])]
            for g in ("graphons", "debian") if collect(cells, f"transfer/{g}")
        ]  # fmt: skip
        text += "\n" + table(["graphs", "gain, points", "accuracy without pre-training, %"], gains)
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[k, number(v[0]), number(v[1])] for k, v in bars(cells).items()]
    )
    if "cost" in cells:
        text += "\n## Cost\n\nProcessor seconds; exponents fitted.\n\n" + table(
            ["", "at", "seconds", "exponent"],
            [
                [k, number(c["at"]), number(c["seconds"]), c["exponent"]]
                for k, c in cells["cost"].items()
                if "at" in c
            ],
        )
        whole = cells["cost"]["all of Debian"]
        text += f"\nOne graph of {whole['nodes']:,} nodes at 32 x 32: {whole['seconds']} s.\n"
    draw(cells)
    return text + "\n![Gain over feasibility](w2pgnn.png)\n"


def draw(cells: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for axis, graphs in zip(axes, ("graphons", "debian"), strict=True):
        rows = [row for run in collect(cells, f"transfer/{graphs}") for row in run["pairs"]]
        for target in sorted({row["target"] for row in rows}):
            mine = [row for row in rows if row["target"] == target]
            axis.plot(
                [row["feasibility"] for row in mine],
                [100 * row["gain"] for row in mine],
                "o",
                ms=4,
                label=target,
            )
        axis.axhline(0, color="grey", lw=0.7)
        axis.set(xlabel="feasibility", ylabel="gain of pre-training, points", title=graphs)
        if rows:
            axis.legend(fontsize=7, title="target", title_fontsize=7)
    figure.savefig(RESULTS / "w2pgnn.png", dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("w2pgnn", ABOUT)
    cells.once("exact", exact)
    cells.once("cost", cost)
    for seed in SEEDS:
        cells.once(f"transfer/graphons/{seed}", partial(transfer, "graphons", seed))
        cells.once(f"scope/{seed}", partial(scope, seed))
        cells.once(f"transfer/debian/{seed}", partial(transfer, "debian", seed))
        cells.once(f"select/{seed}", partial(select, seed))
        cells.once(f"estimator/{seed}", partial(estimator, seed))


if __name__ == "__main__":
    main()
