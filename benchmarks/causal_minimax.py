"""Causal minimax on data whose worst case is known, beside other methods; and what the search over subsets
costs.

Z -> Y -> M -> X <- Y in three training environments of 700 rows; five test environments of 20,000 rows, in
which M follows Y otherwise. Every class of subsets gets its estimated worst case R̂, to be compared with the
largest mean squared error in the tests. Then the same for {X} where M hardly varies at a given Y; and classes
of random graphs, chains and sparse graphs by the search and by all subsets, counted in tests of d-separation.

    python benchmarks/causal_minimax.py        (two minutes on a core)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from time import process_time
from typing import Any

import networkx as nx
import torch
from _results import RESULTS, Cells
from _tables import few, head, number, table
from torch import Tensor

from dmkit.auxiliary.causal.causal_minimax import (
    Mechanisms,
    Separation,
    equivalence_classes,
    exhaustive_classes,
    graphical_condition,
    overlap,
    worst_case_risk,
)
from dmkit.auxiliary.causal.causal_minimax.generating import (
    ELSEWHERE,
    GRAPH,
    environment,
    training_data,
)
from dmkit.auxiliary.causal.causal_minimax.intervening import Function, risk
from dmkit.auxiliary.causal.causal_minimax.regressions import Columns, regress

SEEDS = (0, 1, 2)
SLACKS = (0.3, 0.7)  # beside 1.5
FEATURES = ("Z", "X", "M")
ABOUT = {
    "what": "Mean squared errors, mean ± deviation over seeds. R̂ is estimated from the training data alone; "
    "`worst` is the largest error in five test environments of 20,000 rows.",
    "paper": "IMPC, the authors' record, means over 45 splits: selected ∅ 0.952, full stable set 1.368",
}


def label(subset: Sequence[str]) -> str:
    return "{" + ", ".join(subset) + "}" if subset else "∅"


class Tests:
    """New data of the training environments, and five others."""

    def __init__(self, seed: int):
        draw = torch.Generator().manual_seed(1000 + seed)
        self.own = training_data(draw, rows=20_000)[0]
        self.others = {name: environment(draw, m, 20_000) for name, m in ELSEWHERE.items()}

    def __call__(self, predictor: Function) -> dict[str, Any]:
        with torch.no_grad():
            errors = {name: round(float(risk(predictor, d, "Y")), 4) for name, d in self.others.items()}
            own = round(float(risk(predictor, self.own, "Y")), 4)
        return {"worst": max(errors.values()), "as trained": own, "by environment": errors}


def study(seed: int) -> dict[str, Any]:
    """Every class, and the other methods."""
    columns, index = training_data(torch.Generator().manual_seed(seed))
    tests, components = Tests(seed), graphical_condition(GRAPH, "Y", ["M"])
    generator = torch.Generator().manual_seed(seed)
    start = process_time()
    figure = overlap(components, columns, generator=generator)["M"]
    mechanisms = Mechanisms.learn(components, columns, seed=seed)
    sample = mechanisms.sample(generator=generator)
    classes: dict[str, Any] = {}
    for one in equivalence_classes(components):
        subset = [node for node in components.stable if node in one.minimal]
        predictor = mechanisms.stable_predictor(sample, subset, seed=seed)
        found, spread = worst_case_risk(mechanisms, predictor, generator=generator)
        classes[label(subset)] = {"R̂": round(found, 4), "spread": round(spread, 4), **tests(predictor)}
    seconds = round(process_time() - start, 1)
    least_squares = regress(columns, FEATURES, columns["Y"], width=8, seed=seed)
    found, spread = worst_case_risk(mechanisms, least_squares, generator=generator)
    others: dict[str, Any] = {
        "least squares": {"R̂": round(found, 4), "spread": round(spread, 4), **tests(least_squares)},
        "least squares without M": tests(regress(columns, ("Z", "X"), columns["Y"], width=8, seed=seed)),
        "anchor regression": tests(anchor(columns, index)),
        "IRM": tests(network(columns, index, irm, seed)),
        "group DRO": tests(network(columns, index, lambda y, f: (y - f).square().mean(1).max(), seed)),
    }
    accepted = invariant(columns, index)
    common = [name for name in FEATURES if accepted and all(name in subset for subset in accepted)]
    others["invariant prediction (ICP)"] = {"features": label(common), **tests(quadratic(columns, common))}
    if accepted:
        fits = {subset: quadratic(columns, subset) for subset in accepted}
        best = min(fits, key=lambda subset: float(risk(fits[subset], columns, "Y")))
        others["invariant subset"] = {"features": label(best), **tests(fits[best])}
    selected = min(classes, key=lambda name: classes[name]["R̂"])
    return {
        "overlap": round(figure, 4),
        "seconds": seconds,
        "selected": selected,
        "classes": classes,
        "others": others,
    }


def poor_overlap(seed: int, slack: float) -> dict[str, Any]:
    """{X} where M hardly varies at a given Y."""
    columns, _ = training_data(torch.Generator().manual_seed(seed), slack=slack)
    components = graphical_condition(GRAPH, "Y", ["M"])
    generator = torch.Generator().manual_seed(seed)
    figure = overlap(components, columns, generator=generator)["M"]
    mechanisms = Mechanisms.learn(components, columns, seed=seed)
    predictor = mechanisms.stable_predictor(mechanisms.sample(generator=generator), ["X"], seed=seed)
    found, spread = worst_case_risk(mechanisms, predictor, generator=generator)
    worst = Tests(seed)(predictor)["worst"]
    return {"overlap": round(figure, 4), "R̂": round(found, 4), "spread": round(spread, 4), "worst": worst}


# Other methods, of Z, X, M and the environments


def quadratic(columns: Columns, subset: Sequence[str]) -> Function:
    return regress(columns, subset, columns["Y"], width=0, degree=2)


def invariant(columns: Columns, index: Tensor) -> list[tuple[str, ...]]:
    """Subsets whose residuals have one mean and one variance in all environments, at 5 %: F and Levene."""
    from scipy.stats import f_oneway, levene

    accepted = []
    for subset in (s for size in range(len(FEATURES) + 1) for s in combinations(FEATURES, size)):
        rest = columns["Y"] - quadratic(columns, subset)(columns)
        groups = [rest[index == k].numpy() for k in index.unique()]
        if min(f_oneway(*groups).pvalue, levene(*groups).pvalue) >= 0.05 / 2:
            accepted.append(subset)
    return accepted


def anchor(columns: Columns, index: Tensor, gamma: float = 10.0) -> Function:
    """Rothenhäusler et al. (2021): least squares of (I + (√γ - 1) Π) y, Π the means by environment."""
    x = torch.stack([columns[name] for name in FEATURES], dim=1)
    centre, shift = x.mean(0), columns["Y"].mean()
    both = torch.cat([x - centre, (columns["Y"] - shift)[:, None]], dim=1)
    means = torch.stack([both[index == k].mean(0) for k in index.unique()])[index]
    both = both + (gamma**0.5 - 1) * means
    weight = torch.linalg.lstsq(both[:, :-1], both[:, -1:]).solution[:, 0]
    return lambda d: shift + (torch.stack([d[name] for name in FEATURES], dim=-1) - centre) @ weight


def irm(y: Tensor, f: Tensor) -> Tensor:
    """Arjovsky et al. (2019), IRMv1: the risk and 100 times the squared gradient of a factor of f, at 1."""
    return (y - f).square().mean() + 100 * (2 * (f - y) * f).mean(1).square().mean()


def network(
    columns: Columns, index: Tensor, objective: Callable[[Tensor, Tensor], Tensor], seed: int
) -> Function:
    """A network of one hidden layer of 8, by 400 steps of Adam; rows of y and f are environments."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.stack([columns[name] for name in FEATURES], dim=1)
    centre, scale = x.mean(0), x.std(0)
    shapes = ((3, 8), (8,), (8, 1), (1,))
    weights = [0.5 * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    for weight in weights:
        weight.requires_grad_()

    def f(d: Columns) -> Tensor:
        inputs = (torch.stack([d[name] for name in FEATURES], dim=-1) - centre) / scale
        return ((inputs @ weights[0] + weights[1]).tanh() @ weights[2] + weights[3])[..., 0]

    y = columns["Y"].reshape(len(index.unique()), -1)
    optimizer = torch.optim.Adam(weights, lr=0.02)
    for _ in range(400):
        loss = objective(y, f(columns).reshape(y.shape))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return f


# The search


def random_graph(nodes: int, arrows: float, seed: int) -> nx.DiGraph:
    """Y and others in random order, each later one with a mean of `arrows` arrows into it."""
    draw = random.Random(seed)
    order: list[Any] = ["Y", *range(nodes)]
    draw.shuffle(order)
    graph = nx.DiGraph()
    graph.add_nodes_from(order)
    graph.add_edges_from(
        (a, b) for k, b in enumerate(order) for a in order[:k] if draw.random() < arrows / nodes * 2
    )
    return graph


def chain(nodes: int) -> nx.DiGraph:
    return nx.path_graph(["Y", *range(nodes)], create_using=nx.DiGraph)


def star(nodes: int) -> nx.DiGraph:
    return nx.DiGraph(("Y", k) for k in range(nodes))


def counted(graph: nx.DiGraph, search: Callable[..., list]) -> dict[str, Any]:
    components = graphical_condition(graph, "Y", [])
    test = Separation(components.stable_graph, "Y")
    start = process_time()
    found = search(components, separation=test)
    return {"classes": len(found), "tests": test.tests, "seconds": round(process_time() - start, 4)}


KINDS: dict[str, Callable[[int], nx.DiGraph]] = {
    "chain": chain,
    "sparse": lambda nodes: random_graph(nodes, 1.0, nodes),
    "star": star,
}


def cost(kind: str) -> dict[str, Any]:
    """Tests of d-separation by d: of all subsets up to d = 10, of the search up to 16 (star: 10)."""
    found: dict[str, Any] = {"search": {}, "all subsets": {}}
    for nodes in range(2, 11 if kind == "star" else 17, 2):
        graph = KINDS[kind](nodes)
        found["search"][str(nodes)] = counted(graph, equivalence_classes)
        if nodes <= 10:
            found["all subsets"][str(nodes)] = counted(graph, exhaustive_classes)
    return found


def equal(count: int = 60) -> dict[str, int]:
    """In how many random graphs of 6 stable nodes the search finds what all subsets give."""
    same = 0
    for seed in range(count):
        components = graphical_condition(random_graph(6, 0.5 + seed % 4 / 2, seed), "Y", [])
        same += equivalence_classes(components) == exhaustive_classes(components)
    return {"graphs": count, "equal": same}


# Tables and the plot


def runs(cells: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [figures for key, figures in cells.items() if key.startswith(f"{kind}/")]


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    """What is asked, what was measured, whether it is met."""
    found = runs(cells, "study")
    off = [abs(c["R̂"] / c["worst"] - 1) for run in found for c in run["classes"].values()]
    gap = [run["classes"]["{X}"]["R̂"] - run["classes"]["∅"]["R̂"] for run in found]
    chosen = [run["classes"][run["selected"]]["worst"] for run in found]
    plain = [run["others"]["least squares"]["worst"] for run in found]
    poor = [run["overlap"] for run in runs(cells, "slack 0.3")]
    good = [run["overlap"] for run in found]
    same = cells["equal"]
    return {
        "R̂ within 10 % of the worst test, every class and seed": [max(off), max(off) <= 0.1],
        "R̂ of {X} above that of ∅, every seed (least difference)": [min(gap), min(gap) > 0],
        "worst test of the selected set ≤ 0.55, every seed": [max(chosen), max(chosen) <= 0.55],
        "worst test of least squares ≥ 0.9, every seed": [min(plain), min(plain) >= 0.9],
        "overlap figure refused at slack 0.3 (> 0.85), every seed": [min(poor), min(poor) > 0.85],
        "overlap figure accepted at slack 1.5, every seed": [max(good), max(good) <= 0.85],
        "search equals all subsets on random graphs": [
            same["equal"] / same["graphs"],
            same["equal"] == same["graphs"],
        ],
    }


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    found = runs(cells, "study")
    text = head(content, "Causal minimax")
    text += f"{len(found)} seeds; {few([run['seconds'] for run in found])} seconds for all classes.\n\n"

    def row(name: str, kind: str, note: str = "") -> list[Any]:
        figures = [run[kind][name] for run in found if name in run[kind]]
        estimate = few([f["R̂"] for f in figures]) if "R̂" in figures[0] else ""
        columns = [few([f[key] for f in figures]) for key in ("worst", "as trained")]
        return [name, estimate, *columns, note]

    selected = [run["selected"] for run in found]
    rows = [row(name, "classes", f"selected {selected.count(name)} times") for name in found[0]["classes"]]
    names = dict.fromkeys(name for run in found for name in run["others"])
    for name in names:
        sets = [run["others"][name].get("features", "") for run in found if name in run["others"]]
        rows.append(row(name, "others", ", ".join(dict.fromkeys(s for s in sets if s))))
    text += table(["", "R̂", "worst", "as trained", ""], rows)
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[k, number(v[0]), number(v[1])] for k, v in bars(cells).items()]
    )
    text += "\n## {X} where M hardly varies at a given Y\n\n"
    by_slack = {f"{slack:g}": runs(cells, f"slack {slack:g}") for slack in SLACKS}
    by_slack["1.5"] = [{**run["classes"]["{X}"], "overlap": run["overlap"]} for run in found]
    header = ["slack", "overlap figure", "R̂", "worst"]
    text += table(
        header,
        [
            [s, *(few([f[k] for f in some]) for k in ("overlap", "R̂", "worst"))]
            for s, some in by_slack.items()
        ],
    )
    text += "\n## Tests of d-separation by the number d of stable variables\n\n"
    rows = []
    for kind in KINDS:
        for nodes, figures in cells[f"cost/{kind}"]["search"].items():
            whole = cells[f"cost/{kind}"]["all subsets"].get(nodes, {})
            tests = whole.get("tests", f"({int(nodes) * 2 ** (int(nodes) - 1)})")
            known = [figures["classes"], figures["tests"], tests, figures["seconds"]]
            rows.append([kind, nodes, *known, whole.get("seconds", "")])
    header = ["graph", "d", "classes", "tests, search", "tests, all subsets", "s, search", "s, all subsets"]
    text += table(header, rows) + "\nIn brackets: d 2^(d - 1), not run.\n"
    draw(cells, by_slack)
    return text + "\n![Estimated and true worst cases; cost of the search](causal_minimax.png)\n"


def draw(cells: dict[str, Any], by_slack: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib import pyplot as plt

    found = runs(cells, "study")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
    for name in found[0]["classes"]:
        figures = [run["classes"][name] for run in found]
        left.plot([f["worst"] for f in figures], [f["R̂"] for f in figures], "o", label=name)
    figures = [run["others"]["least squares"] for run in found]
    left.plot([f["worst"] for f in figures], [f["R̂"] for f in figures], "x", color="k", label="least squares")
    left.axline((1, 1), slope=1, color="0.6", lw=1)
    left.set(xlabel="largest error in the tests", ylabel="R̂, from training data")
    left.set_title("every class, every seed", fontsize=9)
    left.legend(fontsize=8)
    for slack, figures in by_slack.items():
        middle.plot(
            [f["overlap"] for f in figures],
            [f["R̂"] / f["worst"] for f in figures],
            "o",
            label=f"slack {slack}",
        )
    middle.axvline(0.85, color="0.6", ls=":", lw=1)
    middle.axhline(1, color="0.6", lw=1)
    middle.set(xlabel="overlap figure (beyond the line: refused)", ylabel="R̂ / largest error")
    middle.set_title("{X} where M hardly varies at a given Y", fontsize=9)
    middle.legend(fontsize=8)
    for k, kind in enumerate(KINDS):
        curves = cells[f"cost/{kind}"]
        for name, style in (("search", f"C{k}o-"), ("all subsets", "ks:")):
            d = sorted(map(int, curves[name]))
            tests = [curves[name][str(nodes)]["tests"] for nodes in d]
            label = f"search, {kind}" if name == "search" else "all subsets" if k == 0 else None
            right.plot(d, tests, style, ms=4, label=label)
    right.set(xlabel="stable variables d", ylabel="tests of d-separation", yscale="log")
    right.set_title("finding the classes", fontsize=9)
    right.legend(fontsize=8)
    figure.savefig(RESULTS / "causal_minimax.png", dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("causal_minimax", ABOUT)
    cells.once("equal", equal)
    for kind in KINDS:
        cells.once(f"cost/{kind}", lambda kind=kind: cost(kind))
    for seed in SEEDS:
        cells.once(f"study/{seed}", lambda seed=seed: study(seed))
    for slack in SLACKS:
        for seed in SEEDS:
            cells.once(f"slack {slack:g}/{seed}", lambda seed=seed, slack=slack: poor_overlap(seed, slack))


if __name__ == "__main__":
    main()
