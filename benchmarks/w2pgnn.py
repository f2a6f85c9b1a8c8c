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
from _beside import Beside
from _results import RESULTS, Cells
from _tables import beyond, few, head, number, table

from dmkit.auxiliary.graphs.w2pgnn import (
    Bases,
    estimate,
    fit,
    graphon,
    gromov_wasserstein,
    noise_floor,
    sample,
    self_distance,
    statistics,
)
from dmkit.auxiliary.graphs.w2pgnn.graphons import degree_variation, hidden_structure
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


def verdict(seed: int) -> dict[str, list[float]]:
    """Distance, noise floor and limit of targets inside and outside what bases can generate."""
    generator = torch.Generator().manual_seed(seed)
    found = {}

    def judge(name: str, numbers: tuple[int, ...], shapes: dict[int, np.ndarray], W: np.ndarray) -> None:
        graphs = drawn(W, generator)
        bases = Bases("domain", tuple(map(str, numbers)), np.stack([shapes[k] for k in numbers]))
        figures = (
            fit(bases, estimate(graphs, RESOLUTION)).distance,
            noise_floor(graphs, RESOLUTION),
            self_distance(graphs, RESOLUTION),
        )
        found[name] = [round(value, 4) for value in figures]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {k: estimate(drawn(graphon(k), generator), RESOLUTION) for k in (0, 1, 4, 6, 8)}
        for i, j in permutations(DOMAINS, 2):
            judge(f"in: {i} and {j}", (i, j), shapes, 0.8 * graphon(i) + 0.2 * graphon(j))
        numbers = (1, 6, 8)
        whole = np.tensordot([0.2, 0.5, 0.3], np.stack([graphon(k) for k in numbers]), 1)
        judge("in: mixture", numbers, shapes, whole)
        for name, W in {
            **{str(k): graphon(k) for k in (4, 7, 9, 11, 12)},
            "0.7 of 1": 0.7 * graphon(1),
        }.items():
            judge(f"out: {name}", numbers, shapes, W)
    return found


def weights(seed: int) -> dict[str, dict[str, float]]:
    """The fitted weight of the larger part, truth 0.8: both bases estimated, and both known, by pair."""
    generator = torch.Generator().manual_seed(1000 + seed)
    shapes = {k: estimate(drawn(graphon(k), generator), RESOLUTION) for k in DOMAINS}
    known = {k: graphon(k, RESOLUTION) for k in DOMAINS}
    found: dict[str, dict[str, float]] = {"estimated": {}, "known": {}}
    for i, j in permutations(DOMAINS, 2):
        D = estimate(drawn(0.8 * graphon(i) + 0.2 * graphon(j), generator), RESOLUTION)
        for way, of in (("estimated", shapes), ("known", known)):
            fitted = fit(Bases("domain", (str(i), str(j)), np.stack([of[i], of[j]])), D)
            found[way][f"{i} and {j}"] = round(fitted.weights[str(i)], 4)
    return found


def flatness(seed: int) -> dict[str, dict[str, Any]]:
    """What is known of each graphon's degrees, what six graphs say, and whether there was a warning."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for k in range(13):
        W = graphon(k, 200)
        graphs = drawn(W, generator, 6)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            estimate(graphs, RESOLUTION - 8)
        variation, chance, _ = degree_variation(graphs)
        kept, left = np.sqrt(np.mean(np.square([hidden_structure(g, RESOLUTION) for g in graphs]), axis=0))
        figures = {
            "true": W.mean(1).std() / W.mean(),
            "found": variation,
            "chance": chance,
            "sorted": kept,
            "left": left,
        }
        found[str(k)] = {name: round(float(v), 4) for name, v in figures.items()} | {"warned": bool(seen)}
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
    if runs := collect(cells, "verdict"):
        for where, right in (("in", True), ("out", False)):
            rows = [v for run in runs for name, v in run.items() if name.startswith(where)]
            n = sum((v[0] <= v[2]) == right for v in rows)
            name = "inside, called feasible" if right else "outside, called infeasible"
            found[f"{name}, of {len(rows)}: all"] = [n, n == len(rows)]
    if runs := collect(cells, "flatness"):
        rows = [(int(k) > 8, row["warned"]) for run in runs for k, row in run.items()]
        n = sum(should == did for should, did in rows)
        found[f"warned of 9 to 12 and not of 0 to 8, of {len(rows)}: all"] = [n, n == len(rows)]
    if runs := collect(cells, "estimator"):
        worst = max(run[str(k)] for run in runs for k in range(9))
        found["estimates of graphons 0 to 8 < 0.05"] = [worst, worst < 0.05]
    for graphs in ("graphons", "debian"):
        if collect(cells, f"transfer/{graphs}"):
            values = correlations(cells, graphs)["feasibility"]["within targets"]
            name = f"transfer, {graphs}: rank correlation within targets > 0 beyond its deviation"
            found[name] = [round(st.mean(values), 3), beyond(values, "not shown")]
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
    if runs := collect(cells, "verdict"):
        text += "\n## Feasible or not\n\n`feasible` is d within the limit, the 95 % quantile of the target's "
        text += "distance to itself. Least and largest of all seeds and targets.\n\n"
        rows = []
        for name in ("in", *(k for k in runs[0] if k.startswith("out"))):
            mine = np.array([v for run in runs for k, v in run.items() if k.startswith(name)])
            over = [mine[:, 0] / mine[:, 2], mine[:, 0] / mine[:, 1]]
            said = [f"{v.min():.2f} to {v.max():.2f}" for v in over]
            said += [int((v <= bar).sum()) for v, bar in zip(over, (1, 5), strict=True)]
            rows.append([name if name != "in" else "in: all", len(mine), *said])
        header = ["target", "cases", "d / limit", "d / floor", "feasible", "within five floors"]
        text += table(header, rows)
    if runs := collect(cells, "flatness"):
        text += "\n## Degrees\n\nSix graphs of 120 nodes. Coefficient of variation of the degree function, "
        text += "true and found, and what noise alone gives; size of what sorting finds and leaves.\n\n"
        rows = [
            [
                k,
                number(runs[0][k]["true"]),
                *(few([run[k][key] for run in runs]) for key in ("found", "chance", "sorted", "left")),
                f"{sum(run[k]['warned'] for run in runs)} of {len(runs)}",
            ]
            for k in runs[0]
        ]
        text += table(["graphon", "true", "found", "noise alone", "sorted", "left", "warned"], rows)
    if runs := collect(cells, "weights"):
        text += f"\n## Weight of the larger part, truth 0.8, {len(runs)} seeds\n\n"
        text += table(
            ["pair", "bases estimated", "bases known"],
            [[p, *(few([r[w][p] for r in runs]) for w in ("estimated", "known"))] for p in runs[0]["known"]],
        )
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


# Of an experiment of the same setting that was made before this code.
REFERENCE = {"fitted": "10", "uniform mean": "5", "graph statistics": "4"}
OUTSIDE = {"dense (4)": "0.276", "two blocks (11)": "0.160", "thin (0.2 of 1)": "0.234"}


def beside(content: dict[str, Any]) -> Beside:
    cells = content["cells"]
    selected, scopes, errors = (collect(cells, k) for k in ("select", "scope", "estimator"))
    rows = [
        (f"pairs found of 12: {way}", few([run[way] for run in selected]), reference, "")
        for way, reference in REFERENCE.items()
    ]
    weights = [w for run in selected for w in run["weights"]]
    said = f"{min(weights):.2f} to {max(weights):.2f}"
    rows.append(("weight of the larger part, truth 0.8", said, "0.79 to 0.83", ""))
    rows.append(
        ("weights of known bases, largest error", number(cells["exact"]["largest error"]), "4e-4", "")
    )
    for name, reference in {"mixture": "0.017", "noise floor": "0.014 to 0.016", **OUTSIDE}.items():
        rows.append((f"distance: {name}", few([run[name] for run in scopes]), reference, ""))
    values = [run[str(k)] for run in errors for k in range(9)]
    said = f"{min(values):.3f} to {max(values):.3f}"
    rows.append(("error of estimates, graphons 0 to 8", said, "0.016 to 0.035", ""))
    for graphs in ("graphons", "debian"):
        for key in PREDICTIONS:
            found = correlations(cells, graphs)[key]["within targets"]
            rows.append((f"rank correlation with gains, {graphs}: {key}", few(found), "", "not known"))
    rows.append(
        ("BACE, ROC-AUC on selected data: W2PGNN / statistics / all", "not run", "", "73.5 / 71.5 / 74.9")
    )
    rows.append(("BBBP, the same", "not run", "", "65.5 / 62.4 / 62.7"))
    sentences = {
        "mixture of known bases": "Least squares on the simplex: to rounding.",
        "pairs found": "Every pair of every seed.",
        "above both": "The weights are what finds them: the uniform mean of the right pair is often farther.",
        "weight of": "One pair, 0.8 of graphon 1 and 0.2 of 8: noise and a bias of 0.06 each, see above.",
        "out of scope": "Two blocks at their nearest seed; their estimate is wrong, and a warning says so.",
        "inside": "At 0.78 of the limit at most.",
        "outside": "The nearest, two blocks, at 1.04 times the limit; 15 of these are within five floors.",
        "warned": "Flat degrees by their variance, degrees at two places by what sorting leaves.",
        "estimates": "Graphon 6 is the worst.",
        "transfer, graphons": "Above 0 by less than its deviation, from targets 2, 4 and 1 of 4 that differ.",
        "transfer, debian": "Below 0 on average; graph statistics are above.",
    }
    found = bars(cells)
    why = {bar: next(text for start, text in sentences.items() if bar.startswith(start)) for bar in found}
    return Beside(
        rows,
        "The reference has one seed, and the noise floor of two sets as large as the target, where ours is "
        "of its halves. The paper's figures are others' readings of it, for ZINC and GCC's corpora, which "
        "are not here.",
        found,
        why,
    )


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
        cells.once(f"verdict/{seed}", partial(verdict, seed))
    for seed in range(10):
        cells.once(f"flatness/{seed}", partial(flatness, seed))
        cells.once(f"weights/{seed}", partial(weights, seed))


if __name__ == "__main__":
    main()
