"""Causal minimax: classes and conditions by graph, exact models, worst cases from data, what is refused."""

import json
import random
from itertools import pairwise

import networkx as nx
import pytest
import torch

from dmkit.auxiliary.causal.causal_minimax import (
    FiniteModel,
    Mechanisms,
    OverlapError,
    Selection,
    Separation,
    equivalence_classes,
    exhaustive_classes,
    first_extension,
    graphical_condition,
    learn_graph,
    overlap,
    select,
    without_environment,
    worst_case_risk,
)
from dmkit.auxiliary.causal.causal_minimax.generating import ELSEWHERE, GRAPH, environment, training_data
from dmkit.auxiliary.causal.causal_minimax.intervening import Responses, risk
from dmkit.auxiliary.causal.causal_minimax.regressions import Regression, regress, simplest
from dmkit.auxiliary.causal.causal_minimax.training import Arguments, read, run
from dmkit.errors import FileFormatError
from dmkit.training.arguments import TrainingArguments

# The example of the authors' repository: eight stable variables.
OFFICIAL = [
    *(("Y", "1"), ("1", "3"), ("3", "2"), ("2", "4"), ("5", "1"), ("6", "1"), ("6", "5")),
    *(("7", "4"), ("8", "2"), ("8", "4"), ("8", "7")),
]
# The smallest members of the classes in their record of it, and how many members there are where not one.
RECORD = (  # noqa: SIM905
    "- 1 2 3 4 15 16 24 25 26 27 28 35 36 45 46 47 48 156 245 246 247 256 257 258 267 268 356 456 457 458 "
    "467 468 478 2456 2457 2467 2567 2568 4567 4568 4578 4678 24567 45678"
).split()
MEMBERS = {"-": 16, "1": 32, "3": 16, "15": 32, "16": 32, "28": 4, "35": 16, "36": 16, "156": 32} | {
    "258": 4, "268": 4, "356": 16, "2568": 4,
}  # fmt: skip


def parts(edges, mutable=(), target="Y"):
    return graphical_condition(nx.DiGraph(edges), target, mutable)


def chain(length):
    return [(a, b) for a, b in zip(["Y", *range(length - 1)], range(length), strict=True)]


def random_graph(seed, nodes=5, density=0.35):
    draw = random.Random(seed)
    order = ["Y", *range(nodes)]
    draw.shuffle(order)
    graph = nx.DiGraph()
    graph.add_nodes_from(order)
    pairs = ((a, b) for k, a in enumerate(order) for b in order[k + 1 :])
    graph.add_edges_from(pair for pair in pairs if draw.random() < density)
    return graph


# -- classes


def test_the_official_example_has_45_classes():
    components = parts(OFFICIAL)
    found = equivalence_classes(components)
    assert len(found) == 45
    sizes = {"".join(sorted(one.minimal)) or "-": one.size for one in found}
    assert sizes == {**dict.fromkeys(RECORD, 1), **MEMBERS}
    assert sum(sizes.values()) == 256
    assert found == exhaustive_classes(components)
    members = [member for one in found for member in one.members()]
    assert len(set(members)) == 256


@pytest.mark.parametrize(
    ("edges", "count"),
    [
        (chain(6), 7),
        ([(b, a) for a, b in chain(6)], 7),
        (chain(7), 8),
        ([("Y", k) for k in range(5)], 32),
        ([("Y", "1"), ("2", "1")], 3),
        ([("Y", "1"), ("1", "2"), ("Y", "3"), ("3", "4"), ("1", "3")], 9),
    ],
)
def test_classes_of_known_graphs(edges, count):
    components = parts(edges)
    found = equivalence_classes(components)
    assert len(found) == count
    assert found == exhaustive_classes(components)


def test_a_collider_by_its_members():
    found = equivalence_classes(parts([("Y", "1"), ("2", "1")]))
    assert [{tuple(sorted(m)) for m in one.members()} for one in found] == [
        {(), ("2",)},
        {("1",)},
        {("1", "2")},
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_what_all_subsets_give(seed):
    components = graphical_condition(random_graph(seed), "Y", [])
    assert equivalence_classes(components) == exhaustive_classes(components)


def test_members_of_a_class_are_equivalent_by_definition():
    components = parts(OFFICIAL)
    test = Separation(components.stable_graph, "Y")
    for one in equivalence_classes(components):
        assert all(test.separated(node, one.minimal) for node in one.free)


def test_an_isolated_variable_is_free_everywhere():
    graph = nx.DiGraph(chain(3))
    graph.add_node("alone")
    found = equivalence_classes(graphical_condition(graph, "Y", []))
    assert len(found) == 4
    assert all("alone" in one.free for one in found)


def test_the_search_of_a_chain_needs_few_tests():
    """Tests of d-separation: quadratic here, against d 2^d."""
    counts = {}
    for length in (6, 12):
        components = parts(chain(length))
        test = Separation(components.stable_graph, "Y")
        equivalence_classes(components, separation=test)
        counts[length] = test.tests
    assert counts[12] <= 5 * counts[6]
    assert counts[12] <= 2 * 12**2


def test_too_many_classes_are_refused():
    with pytest.raises(ValueError, match="more than max_classes=10 classes"):
        equivalence_classes(parts(chain(12)), max_classes=10)
    with pytest.raises(ValueError, match=r"there are 2\^40 classes or more, beyond max_classes=4096"):
        equivalence_classes(parts([("Y", k) for k in range(40)]))  # at once, whose list no memory holds


# -- the condition


def test_components_of_the_official_graph():
    edges = [*OFFICIAL, ("Y", "9"), ("9", "1"), ("3", "10"), ("5", "10"), ("8", "10")]
    found = parts(edges, ["9", "10"])
    assert found.mutable_children == {"9"}
    assert found.after == {"1", "2", "3", "4", "10"}
    assert set(found.moved) == {"1", "2", "3", "4"}
    assert not found.full_set_is_optimal
    assert len(equivalence_classes(found)) == 45
    environment = nx.DiGraph([*edges, ("E", "9"), ("10", "E")])
    graph, mutable = without_environment(environment, "E")
    assert (set(mutable), "E" in graph) == ({"9", "10"}, False)


def test_the_condition():
    assert parts([("Y", "m"), ("m", "x")], ["m"]).full_set_is_optimal
    assert not parts([("Y", "m"), ("m", "x"), ("Y", "x")], ["m"]).full_set_is_optimal
    # A mutable child below another one is no member of K.
    assert parts([("Y", "m"), ("m", "n"), ("Y", "n")], ["m", "n"]).full_set_is_optimal
    assert parts([("x", "Y"), ("m", "x")], ["m"]).full_set_is_optimal


def test_what_mutable_variables_say():
    found = parts([("z", "Y"), ("Y", "m"), ("m", "x"), ("Y", "x"), ("n", "Y")], ["m", "n"])
    assert found.informative(frozenset()) == ["n"]
    assert found.informative(frozenset({"z"})) == ["n"]
    assert set(found.informative(frozenset({"x"}))) == {"m", "n"}


def test_graphs_that_are_refused():
    with pytest.raises(ValueError, match="undirected edges: a - b"):
        parts([("Y", "a"), ("a", "b"), ("b", "a")])
    with pytest.raises(ValueError, match=r"a cycle: .*a -> b -> c"):
        parts([("Y", "a"), ("a", "b"), ("b", "c"), ("c", "a")])
    with pytest.raises(ValueError, match="'Q' is not a node of the graph; it has Y, a"):
        parts([("Y", "a")], ["Q"])
    with pytest.raises(ValueError, match="the target 'Y' cannot be mutable"):
        parts([("Y", "a")], ["Y"])
    with pytest.raises(TypeError, match=r"networkx\.DiGraph, not Graph"):
        graphical_condition(nx.Graph([("Y", "a")]), "Y", [])
    with pytest.raises(ValueError, match="'E' is not a node"):
        without_environment(nx.DiGraph([("Y", "a")]), "E")


def test_undirected_edges_are_oriented_without_new_colliders():
    arrows = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"), ("d", "c"), ("e", "c")]
    with pytest.raises(ValueError, match="cannot be oriented"):
        first_extension(nx.DiGraph([("a", "c"), ("b", "c"), ("c", "d"), ("d", "c"), ("e", "d"), ("f", "d")]))
    found = first_extension(nx.DiGraph([*arrows[:4], ("c", "d")]))
    assert nx.is_directed_acyclic_graph(found)
    assert found.number_of_edges() == 3
    assert all(found.in_degree(node) <= 1 for node in found)
    tree = nx.DiGraph(chain(5))
    both = tree.copy()
    both.add_edges_from((b, a) for a, b in tree.edges)
    assert first_extension(both).number_of_edges() == 5


# -- exact models


def binary(at_0=0.9, at_1=0.1):
    """Y -> M, Y -> X, M -> X."""
    return FiniteModel.of(
        nx.DiGraph([("Y", "M"), ("Y", "X"), ("M", "X")]),
        "Y",
        ["M"],
        {
            "Y": [0.3, 0.7],
            "M": [[at_0, 1 - at_0], [at_1, 1 - at_1]],
            "X": [[[0, 1], [0, 1]], [[4 / 7, 3 / 7], [0, 1]]],
        },
    )


def test_the_full_set_can_be_worse_than_none():
    model = binary()
    assert not model.components.full_set_is_optimal
    worst, functions = model.worst_case(["X"])
    assert worst == pytest.approx(0.222, abs=1e-9)
    assert model.worst_case([])[0] == pytest.approx(0.21, abs=1e-9)
    assert functions["M"].tolist() == [[0, 1], [1, 0]]  # h(0) = 1, h(1) = 0
    assert float(model.risk(["X"])) == pytest.approx(0.1464, abs=1e-9)
    _, predictor = model.predictor(["X"])
    squares = {
        (y, m): float((y - predictor[:, m]) ** 2 @ model.tables["X"][y, m]) for y in (0, 1) for m in (0, 1)
    }
    assert squares == pytest.approx({(1, 0): 0.107142857, (1, 1): 0.09, (0, 0): 0.25, (0, 1): 0.49}, abs=1e-8)


def test_least_squares_is_better_here_and_far_worse_there():
    model = binary()
    fitted = model.regression(["X"])
    assert float(model.risk(None, predictor=fitted)) == pytest.approx(0.0556, abs=5e-5)
    assert model.worst_case(None, fitted)[0] == pytest.approx(0.5163, abs=5e-5)


def test_ascent_finds_what_exhaustive_search_finds():
    draw = torch.Generator().manual_seed(0)
    graph = nx.DiGraph([("Y", "M"), ("Z", "M"), ("Y", "X"), ("M", "X"), ("X", "N"), ("N", "W"), ("Y", "W")])
    for _ in range(2):
        tables = {}
        for node in graph:
            shape = [2] * (graph.in_degree(node) + 1)
            tables[node] = torch.rand(shape, generator=draw, dtype=torch.float64)
            tables[node] /= tables[node].sum(-1, keepdim=True)
        model = FiniteModel.of(graph, "Y", ["M", "N"], tables)
        for subset in (("X",), ("X", "W", "Z")):
            exact, functions = model.worst_case(subset)
            assert float(model.risk(subset, functions)) == pytest.approx(exact, abs=1e-12)
            found = model.ascend(subset, generator=draw, restarts=2, steps=25)[0]
            assert found == pytest.approx(exact, abs=1e-9)
            random_one = {m: torch.rand(tables[m].shape, generator=draw).double().softmax(-1) for m in "MN"}
            assert float(model.risk(subset, random_one)) <= exact + 1e-12


def test_equivalent_subsets_have_one_predictor_and_one_risk():
    draw = torch.Generator().manual_seed(1)
    graph = nx.DiGraph([("Z", "Y"), ("A", "Z"), ("Y", "M"), ("M", "X"), ("Y", "X"), ("X", "W")])
    tables = {}
    for node in graph:
        table = torch.rand([2] * (graph.in_degree(node) + 1), generator=draw, dtype=torch.float64)
        tables[node] = table / table.sum(-1, keepdim=True)
    model = FiniteModel.of(graph, "Y", ["M"], tables)
    risks = {}
    for one in equivalence_classes(model.components):
        same = {round(model.worst_case(member)[0], 12) for member in one.members()}
        assert len(same) == 1, one
        risks[one.minimal] = same.pop()
    assert len(set(risks.values())) > len(risks) // 2


def test_the_condition_holds_in_exact_models():
    """Where the graph says so, no subset beats the full set."""
    draw = torch.Generator().manual_seed(2)
    graph = nx.DiGraph([("Z", "Y"), ("Y", "M"), ("M", "X"), ("Y", "W"), ("Z", "X")])
    for _ in range(4):
        tables = {}
        for node in graph:
            table = torch.rand([2] * (graph.in_degree(node) + 1), generator=draw, dtype=torch.float64)
            tables[node] = table / table.sum(-1, keepdim=True)
        model = FiniteModel.of(graph, "Y", ["M"], tables)
        assert model.components.full_set_is_optimal
        risks = {
            one.minimal | one.free: model.worst_case(one.minimal)[0]
            for one in equivalence_classes(model.components)
        }
        assert min(risks.values()) == pytest.approx(risks[frozenset("ZXW")])


def test_tables_that_are_refused():
    graph = nx.DiGraph([("Y", "M")])
    with pytest.raises(ValueError, match="'Y' has no table"):
        FiniteModel.of(graph, "Y", ["M"], {"M": [[0.5, 0.5]] * 2})
    with pytest.raises(ValueError, match=r"the table of 'M' must have the shape \(2, 2\), got \(3, 2\)"):
        FiniteModel.of(graph, "Y", ["M"], {"Y": [0.5, 0.5], "M": [[0.5, 0.5]] * 3})
    with pytest.raises(ValueError, match="probabilities that sum to 1"):
        FiniteModel.of(graph, "Y", ["M"], {"Y": [0.5, 0.6], "M": [[0.5, 0.5]] * 2})
    with pytest.raises(ValueError, match=r"\['M'\] are not stable variables"):
        binary().predictor(["M"])
    with pytest.raises(ValueError, match="at most 52 nodes, got 53"):
        FiniteModel.of(nx.DiGraph((k, k + 1) for k in range(52)), 0, [1], {})


def test_the_continuous_counterexample():
    """Y ~ N(0, 1), X = M Y + N(0, 1), M in [0, 1]: R({X}) = 1.0786 > R(∅) = 1.

    Gauss-Legendre in place of the integral over Y, in pieces that end where the worst M leaves 0; three
    Gauss-Hermite points for the noise N, exact for (Y - f)², which is quadratic in it; 501 values of M.
    """
    from numpy.polynomial.hermite_e import hermegauss
    from numpy.polynomial.legendre import leggauss
    from scipy.integrate import quad
    from scipy.stats import norm

    edge = 0.5**0.5
    nodes, weights = (torch.from_numpy(one) for one in leggauss(12))
    pieces = list(pairwise([-9, -3, -edge, 0, edge, 3, 9]))
    y = torch.cat([(a + b + (b - a) * nodes) / 2 for a, b in pieces])
    mass = torch.cat([(b - a) / 2 * weights for a, b in pieces]) * (-(y**2) / 2).exp()
    noise, noise_mass = (torch.from_numpy(one) for one in hermegauss(3))
    m = torch.linspace(0, 1, 501, dtype=torch.float64)
    graph = nx.DiGraph([("Y", "M")])
    graph.add_node("N")
    model = FiniteModel.of(
        graph,
        "Y",
        ["M"],
        {"Y": mass / mass.sum(), "N": noise_mass / noise_mass.sum()},
        {"Y": y, "N": noise, "M": m},
    )
    x = m[:, None] * y + noise[:, None, None]  # (N, M, Y)
    best = (("N", "M", "Y"), m[:, None] * x / (m[:, None] ** 2 + 1))
    known = 2 * (
        quad(lambda y: y**2 * norm.pdf(y), edge, 12, epsabs=1e-12)[0]
        + quad(lambda y: norm.pdf(y) / (4 * (1 - y**2)), 0, edge, epsabs=1e-12)[0]
    )
    assert known == pytest.approx(1.0786, abs=5e-5)
    assert model.worst_case(None, best)[0] == pytest.approx(known, abs=1e-6)
    assert model.worst_case([])[0] == pytest.approx(1, abs=1e-6)


# -- worst cases from data


def normal(generator, rows):
    return torch.randn(rows, generator=generator, dtype=torch.float64)


def experiment(seed, slack=1.5, rows=300):
    return training_data(torch.Generator().manual_seed(seed), rows=rows, slack=slack)[0]


def linear(rows=20_000, b=1.0, c=0.8, d=1.2, deviation=0.5):
    """Y -> M, Y -> X1 <- M, X1 -> X2, all linear and Gaussian."""
    draw = torch.Generator().manual_seed(0)
    y = normal(draw, rows)
    m = 0.7 * y + normal(draw, rows)
    x1 = b * y + c * m + deviation * normal(draw, rows)
    return {"Y": y, "M": m, "X1": x1, "X2": d * x1 + deviation * normal(draw, rows)}


LINEAR = [("Y", "M"), ("Y", "X1"), ("M", "X1"), ("X1", "X2")]


def test_a_stable_predictor_of_a_linear_model():
    """E[Y | X2, do(M)] = 0.5854 (X2 - 0.96 M), risk 0.2976: residuals matter, and X2 may not be shuffled."""
    columns = linear()
    mechanisms = Mechanisms.learn(parts(LINEAR, ["M"]), columns, width=0)  # permutes M only
    sample = mechanisms.sample(generator=torch.Generator().manual_seed(1))
    predictor = mechanisms.stable_predictor(sample, ["X2"], width=0)
    assert predictor.inputs == ("X2", "M")
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    at_0 = predictor({"X2": zero, "M": zero})
    assert float(predictor({"X2": one, "M": zero}) - at_0) == pytest.approx(0.5854, abs=0.01)
    assert float(predictor({"X2": zero, "M": one}) - at_0) == pytest.approx(-0.5854 * 0.96, abs=0.01)
    assert float(risk(predictor, sample, "Y")) == pytest.approx(0.2976, abs=0.008)


def test_a_linear_risk_does_not_depend_on_the_mechanism():
    """σ² / (b² Var(Y) + σ²) Var(Y) = 0.2: exactly so for the best coefficients, nearly for learned ones."""
    columns = linear()
    components = parts(LINEAR, ["M"])
    draw = torch.Generator().manual_seed(1)
    learned = Mechanisms.learn(components, columns, width=0)
    predictor = learned.stable_predictor(learned.sample(generator=draw), ["X1"], width=0)
    observed = float(risk(predictor, columns, "Y"))
    assert observed == pytest.approx(0.2, abs=0.005)
    found = worst_case_risk(learned, predictor, generator=draw, restarts=2, steps=15)[0]
    assert found == pytest.approx(observed, rel=0.01)

    def line(inputs, *weights):
        k = len(inputs)
        scaled = {
            "mean": torch.zeros(k),
            "deviation": torch.ones(k),
            "weight0": torch.tensor(weights)[:, None],
        }
        constants = {"shift": torch.zeros(()), "scale": torch.ones(()), "bias0": torch.zeros(1)}
        return Regression(inputs, {name: value.double() for name, value in (scaled | constants).items()})

    equation, best = line(("Y", "M"), 1.0, 0.8), line(("X1", "M"), 0.8, -0.64)  # E[Y | X1, do(M)]
    residual = columns["X1"] - equation(columns)
    true = Mechanisms(
        components,
        columns,
        {**learned.equations, "X1": equation},
        {**learned.residuals, "X1": residual},
        learned.bounds,
    )
    found = worst_case_risk(true, best, generator=draw, restarts=2, steps=15)
    assert found == pytest.approx((float(risk(best, columns, "Y")), 0), abs=1e-5)


def test_first_functions_differ():
    """Equal first weights would leave every hidden unit, and every restart, what the first one is."""
    columns = experiment(0)
    made = Responses(("Y",), columns, (0.0, 1.5), 3, 4, torch.Generator().manual_seed(0))
    one, other, _ = made(columns)
    assert (one - other).abs().max() > 0.1
    assert len(made.parameters[0].flatten().unique()) == 12
    assert ((made(columns) >= 0) & (made(columns) <= 1.5)).all()


def test_ascent_with_the_true_mechanism_finds_the_analytic_risk():
    """The continuous counterexample, by ascent over functions of Y."""

    class Product:
        def __call__(self, columns):
            return columns["M"] * columns["Y"]

    class Best:
        inputs = ("X", "M")

        def __call__(self, columns):
            return columns["M"] * columns["X"] / (columns["M"] ** 2 + 1)

    draw = torch.Generator().manual_seed(0)
    rows = 4000
    # Quantiles in place of a sample: the risk's own sampling error is not what is looked at.
    y = torch.special.ndtri((torch.arange(rows).double() + 0.5) / rows)[torch.randperm(rows, generator=draw)]
    noise = torch.special.ndtri((torch.arange(rows).double() + 0.5) / rows)
    columns = {"Y": y, "M": torch.zeros(rows).double(), "X": noise}
    components = parts([("Y", "M"), ("Y", "X"), ("M", "X")], ["M"])
    mechanisms = Mechanisms(components, columns, {"X": Product()}, {"X": noise}, {"M": (0.0, 1.0)})
    found, spread = worst_case_risk(mechanisms, Best(), generator=draw, restarts=3, steps=100)
    assert found == pytest.approx(1.0786, rel=0.02)
    assert spread >= 0
    ends = [worst_case_risk(mechanisms, Best(), generator=draw, restarts=1, steps=0)[0]]
    assert min(ends) >= 1 - 0.02  # M = 0 throughout gives 1, without an ascent


def test_the_observed_mechanism_gives_the_observed_risk():
    columns = experiment(0)
    mechanisms = Mechanisms.learn(parts(GRAPH.edges, ["M"]), columns, width=0)

    class Observed:
        def __call__(self, made):
            return columns["M"]

    made = mechanisms.follow({"M": Observed()})
    torch.testing.assert_close(made["X"], columns["X"])
    line = regress(columns, ("Z", "X", "M"), columns["Y"], width=0)
    assert float(risk(line, made, "Y")) == pytest.approx(float(risk(line, columns, "Y")))


def test_forms_of_equations():
    columns = experiment(1, rows=200)
    found = simplest(columns, ("Y", "M"), columns["X"], width=8)
    assert found.tensors["powers"].shape == (5, 2)  # X = M Y: a quadratic, not a network
    line = regress(columns, ("Z",), 3 * columns["Z"] + 1, width=0)
    torch.testing.assert_close(line(columns), 3 * columns["Z"] + 1)
    curve = (4 * columns["Z"]).tanh() * (2 * columns["Z"]).cos()
    assert "weight1" in simplest(columns, ("Z",), curve, width=8).tensors
    nothing = regress(columns, (), columns["X"], width=8)
    torch.testing.assert_close(nothing(columns), columns["X"].mean().expand(600))
    network = regress(columns, ("Y", "M"), columns["X"], width=4)
    moved = {name: columns[name].clone().requires_grad_() for name in "YM"}
    network(moved).sum().backward()
    assert moved["M"].grad.abs().sum() > 0


def test_select_prefers_what_is_stable_and_says_what_it_costs(tmp_path):
    data = {**experiment(3, rows=400), "other": ["a"] * 1200}
    chosen = select(data, GRAPH, "Y", ["M"], restarts=2, steps=40)
    rows = {row.features: row for row in chosen.rows}
    assert set(rows) == {(), ("Z",), ("X",), ("Z", "X")}
    assert "Z" in chosen.features
    assert rows["X",].risk > rows[()].risk
    assert rows["Z", "X"].pooled_risk < rows["Z",].pooled_risk
    assert rows["X",].risk == pytest.approx(1.61, rel=0.1)
    assert rows["Z",].spread == 0
    assert chosen.overlap["M"] < 0.85
    draw = torch.Generator().manual_seed(0)
    tests = [environment(draw, mechanism, 4000) for mechanism in ELSEWHERE.values()]
    assert max(float(risk(chosen.predictor, one, "Y")) for one in tests) < 0.55
    some = {name: column[:7] for name, column in tests[0].items()}  # no statistics of what is predicted for
    torch.testing.assert_close(chosen.predict(some), chosen.predict(tests[0])[:7])
    chosen.save_pretrained(tmp_path / "chosen")
    again = Selection.from_pretrained(tmp_path / "chosen")
    torch.testing.assert_close(again.predict(data), chosen.predict(data), rtol=1e-12, atol=1e-12)
    assert (again.rows, again.features) == (chosen.rows, chosen.features)
    assert (again.overlap, again.bounds) == (chosen.overlap, chosen.bounds)
    assert again.components.mutable == ("M",)
    assert set(again.components.graph.edges) == set(GRAPH.edges)
    with pytest.raises(ValueError, match="the data lack Z"):
        chosen.predict({"X": [0.0], "M": [0.0]})
    about = json.loads((tmp_path / "chosen" / "config.json").read_text())
    for change, says in (
        ({"version": 9}, "should have version 1, not 9"),
        ({"rows": [{"features": []}]}, "is no selection"),
        ({"inputs": ["Z"] * 9}, "is no selection"),
    ):
        (tmp_path / "chosen" / "config.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(FileFormatError, match=says):
            Selection.from_pretrained(tmp_path / "chosen")


def test_a_risk_that_the_data_cannot_support_is_not_reported():
    chosen = select(experiment(4, slack=0.3), GRAPH, "Y", ["M"], width=0, restarts=1, steps=5)
    assert chosen.overlap["M"] > 0.85
    rows = {row.features: row for row in chosen.rows}
    assert rows["X",].risk is None
    assert rows["Z", "X"].risk is None
    assert "M (overlap figure 0.9" in rows["X",].refused
    assert "most of what it might do was never seen" in rows["X",].refused
    assert rows[()].risk is not None  # nothing that M does reaches it
    assert chosen.features == ("Z",)


def test_no_choice_that_can_be_supported():
    draw = torch.Generator().manual_seed(0)
    z = normal(draw, 600)
    m = z + 0.02 * normal(draw, 600)
    data = {"Z": z, "M": m, "Y": z + m + normal(draw, 600)}
    graph = nx.DiGraph([("Z", "M"), ("M", "Y"), ("Z", "Y")])
    with pytest.raises(OverlapError, match="no worst-case risk can be reported: M"):
        select(data, graph, "Y", ["M"], width=0)


def test_overlap_knows_no_units():
    columns = experiment(5, rows=700)
    components = parts(GRAPH.edges, ["M"])
    one = overlap(components, columns, generator=torch.Generator().manual_seed(0))
    scaled = {name: (3 * column).exp() for name, column in columns.items()}
    assert overlap(components, scaled, generator=torch.Generator().manual_seed(0)) == one
    order = torch.randperm(2100, generator=torch.Generator().manual_seed(1))
    shuffled = {**columns, "M": columns["M"][order]}
    assert overlap(components, shuffled, generator=torch.Generator().manual_seed(0))["M"] == pytest.approx(
        0.5, abs=0.05
    )


def test_where_the_graph_decides_one_subset_is_fitted():
    columns = linear(1500)
    graph = nx.DiGraph([("Y", "M"), ("M", "X1"), ("X1", "X2")])
    chosen = select(columns, graph, "Y", ["M"], width=0)
    assert chosen.components.full_set_is_optimal
    assert [(row.features, row.free) for row in chosen.rows] == [((), ("X1", "X2"))]  # M is set: no path to Y
    torch.testing.assert_close(chosen.predict({"M": columns["M"]}), columns["Y"].mean().expand(1500))


def test_without_mutable_variables_it_is_regression_on_the_markov_boundary():
    columns = linear(1500)
    chosen = select(columns, nx.DiGraph(LINEAR), "Y", [], width=0)
    assert set(chosen.features) == {"M", "X1"}
    plain = regress(columns, chosen.predictor.inputs, columns["Y"], width=0)
    torch.testing.assert_close(chosen.predict(columns), plain(columns), rtol=1e-6, atol=1e-6)


def test_exhaustive_search_selects_the_same():
    data = linear(800)
    options = {"width": 0, "restarts": 2, "steps": 20}
    one, other = (
        select(data, nx.DiGraph(LINEAR), "Y", ["M"], exhaustive=e, **options) for e in (False, True)
    )
    for row, same in zip(one.rows, other.rows, strict=True):
        assert (row.features, row.free) == (same.features, same.free)
        assert row.risk == pytest.approx(same.risk)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.pop("X"), "the graph's nodes X are not columns of the data"),
        (lambda data: data.update(X=["a"] * 900), "column 'X' must hold numbers"),
        (lambda data: data["X"].__setitem__(3, float("nan")), "column 'X' must be one row of finite numbers"),
        (lambda data: data.update(X=torch.zeros(5)), "columns must have one length"),
        (
            lambda data: data.update(X=(data["X"] > 0).double()),
            "'X' has two values .* additive noise does not fit",
        ),
    ],
)
def test_data_that_are_refused(change, says):
    data = experiment(0)
    change(data)
    with pytest.raises(ValueError, match=says):
        select(data, GRAPH, "Y", ["M"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"restarts": 0}, "restarts 0 and repeats 3"),
        ({"width": -1}, "width -1"),
        ({"bounds": {"M": (1, 0)}}, r"bounds \(1, 0\) of 'M'"),
        ({"bounds": {"Z": (0, 1)}}, "of a mutable variable"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        select(experiment(0), GRAPH, "Y", ["M"], **options)


def test_few_rows_are_refused():
    few = {name: column[:20] for name, column in experiment(0).items()}
    with pytest.raises(ValueError, match="20 rows are too few"):
        select(few, GRAPH, "Y", ["M"])


def test_a_poor_overlap_that_does_not_matter():
    """N follows from W, but neither Y nor a feature lies below it."""
    data = linear(900)
    draw = torch.Generator().manual_seed(3)
    data["W"] = normal(draw, 900)
    data["N"] = data["W"] + 0.01 * normal(draw, 900)
    data["V"] = data["N"] + data["Y"] + normal(draw, 900)
    graph = nx.DiGraph([*LINEAR, ("W", "N"), ("N", "V"), ("Y", "V")])
    chosen = select(data, graph, "Y", ["M", "N"], width=0, restarts=1, steps=5)
    assert chosen.overlap["N"] > 0.95
    refused = {row.features: bool(row.refused) for row in chosen.rows}
    assert refused == {features: "V" in features for features in refused}


# -- learned graphs, and from the command line


def varied(rows=500):
    """Z -> Y <- W, Y -> M, whose level differs between three environments."""
    draw = torch.Generator().manual_seed(0)
    index = torch.arange(3).repeat_interleave(rows)
    z, w = normal(draw, 3 * rows), normal(draw, 3 * rows)
    y = z + w + 0.7 * normal(draw, 3 * rows)
    return {"Z": z, "W": w, "Y": y, "M": y + 2.5 * index + normal(draw, 3 * rows), "E": index}


def test_a_graph_is_learned_and_used():
    pytest.importorskip("causallearn")
    data = varied()
    graph = learn_graph(data, test="fisherz")
    assert graph.has_edge("Z", "Y")
    assert not graph.has_edge("Y", "Z")
    assert not graph.has_edge("Z", "W")
    rest, mutable = without_environment(graph, "E")
    assert mutable == ["M"]
    chosen = select(data, first_extension(rest), "Y", mutable, width=0)
    assert chosen.components.full_set_is_optimal
    assert set(chosen.features) == {"Z", "W"}


def test_environments_may_have_names():
    pytest.importorskip("causallearn")
    data = varied(200)
    named = {**data, "E": [["Bonn", "Rome", "York"][k] for k in data["E"]]}
    assert set(learn_graph(named, test="fisherz").edges) == set(learn_graph(data, test="fisherz").edges)


def test_learning_that_is_refused():
    data = {"Y": [0.0, 1.0], "E": [1, 1]}
    with pytest.raises(ValueError, match="two or more environments; 'E' has one"):
        learn_graph(data)
    with pytest.raises(ValueError, match=r"Unknown test 'kcl'. Did you mean 'kci'"):
        learn_graph(data, test="kcl")
    with pytest.raises(ValueError, match="Unknown environment column 'site'"):
        learn_graph(data, "site")
    for column, says in (
        ([0.0, float("nan")], "column 'Y' must be one row of finite numbers"),
        (["a", "b"], "column 'Y' must hold numbers"),
        ([3.0, 3.0], "column 'Y' is constant"),
    ):
        with pytest.raises(ValueError, match=says):
            learn_graph({"Y": column, "E": [0, 1]}, test="fisherz")


def test_a_table_and_a_graph_from_files(tmp_path):
    import pandas

    pandas.DataFrame({name: column.numpy() for name, column in varied(200).items()}).to_csv(
        tmp_path / "data.csv", index=False
    )
    graph = nx.DiGraph([("Z", "Y"), ("W", "Y"), ("Y", "M"), ("E", "M")])
    nx.write_gml(graph, tmp_path / "graph.gml")
    paths = {"data": str(tmp_path / "data.csv"), "graph": str(tmp_path / "graph.gml")}
    found = run(Arguments(**paths, width=0), TrainingArguments(output_dir=str(tmp_path / "out")))
    assert (found["mutable"], set(found["features"])) == (["M"], {"Z", "W"})
    assert found["full_set_is_optimal"]
    assert set(Selection.from_pretrained(tmp_path / "out").features) == {"Z", "W"}
    with pytest.raises(FileFormatError, match=r"nowhere\.csv is missing or no table"):
        read(Arguments(data=str(tmp_path / "nowhere.csv")), 0)
    with pytest.raises(ValueError, match=r"Unknown --target 'y'"):
        read(Arguments(data=paths["data"], target="y"), 0)
    with pytest.raises(FileFormatError, match=r"data\.csv is missing or is not GML"):
        read(Arguments(data=paths["data"], graph=paths["data"]), 0)
    with pytest.raises(ValueError, match="nothing is mutable: name columns, or join them to 'site'"):
        read(Arguments(**paths, environment="site"), 0)


def test_generated_data_have_their_own_graph():
    data, graph, mutable = read(Arguments(), 0)
    assert (set(graph.edges), mutable) == (set(GRAPH.edges), ["M"])
    assert set(data) == {"Z", "Y", "M", "X", "E"}
