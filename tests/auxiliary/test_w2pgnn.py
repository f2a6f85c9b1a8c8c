"""W2PGNN: graphons, the distance of two and its gradient, mixtures, and the three questions."""

import math
import sys
import warnings

import networkx as nx
import numpy as np
import pytest
import torch

pytest.importorskip("ot")
from scipy import sparse

from dmkit.auxiliary.graphs.w2pgnn import (
    Bases,
    ego_graphs,
    estimate,
    feasibility,
    fit,
    gradient,
    graphon,
    gromov_wasserstein,
    noise_floor,
    sample,
    scope,
    select_pretraining,
    self_distance,
    statistics,
)
from dmkit.auxiliary.graphs.w2pgnn.bases import clusters
from dmkit.auxiliary.graphs.w2pgnn.graphons import (
    adjacency,
    degree_spread,
    degree_variation,
    hidden_structure,
    overlap,
    pooled,
)
from dmkit.auxiliary.graphs.w2pgnn.matching import monotone, product, value
from dmkit.errors import FileFormatError


def drawn(W: np.ndarray, count: int = 4, nodes: int = 60, seed: int = 0) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return [sample(W, nodes, generator)[0] for _ in range(count)]


def exact(*numbers: int, resolution: int = 40) -> Bases:
    names = tuple(f"graphon {k}" for k in numbers)
    return Bases("domain", names, np.stack([graphon(k, resolution) for k in numbers]))


# The distance (2)


def test_constants_are_as_far_apart_as_their_values():
    C, D = np.full((6, 6), 0.3), np.full((4, 4), 0.7)
    assert gromov_wasserstein(C, D).distance == pytest.approx(0.4, abs=1e-9)


def test_a_distance_is_zero_to_itself_symmetric_and_not_negative():
    C, D = graphon(1, 12), graphon(4, 12)
    assert gromov_wasserstein(C, C).distance == pytest.approx(0, abs=1e-7)
    one, other = gromov_wasserstein(C, D), gromov_wasserstein(D, C)
    assert one.distance == pytest.approx(other.distance, abs=1e-6)
    assert one.distance >= 0
    assert np.allclose(one.plan.sum(0), 1 / 12, atol=1e-9)
    assert np.allclose(one.plan.sum(1), 1 / 12, atol=1e-9)
    assert (one.plan >= 0).all()
    # A rounding error below zero has no root.
    assert value(C + 1e-13, C, monotone(C, C)) >= 0


def test_names_of_nodes_do_not_matter():
    C = graphon(1, 10)
    order = np.random.default_rng(0).permutation(10)
    assert gromov_wasserstein(C, C[order][:, order]).distance == pytest.approx(0, abs=1e-6)


def test_order_is_the_best_plan_of_graphons_with_monotone_degrees():
    C, D = graphon(1, 40), graphon(4, 40)
    assert gromov_wasserstein(C, D).distance == pytest.approx(0.44887, abs=1e-5)
    assert gromov_wasserstein(C, D).distance == pytest.approx(math.sqrt(((C - D) ** 2).mean()), abs=1e-6)


def test_several_starts_find_no_worse_than_one():
    C, D = graphon(9, 16), graphon(12, 16)
    both = gromov_wasserstein(C, D).distance
    for start in (product, monotone):
        assert both <= gromov_wasserstein(C, D, [start(C, D)]).distance + 1e-12


def test_the_gradient_is_that_of_finite_differences_and_of_autograd():
    import ot

    C, D = graphon(1, 8), graphon(4, 8)
    plan = gromov_wasserstein(C, D).plan
    found = gradient(C, D, plan)
    rng = np.random.default_rng(0)
    step = rng.standard_normal((8, 8))
    step = (step + step.T) * 1e-5
    above, below = (gromov_wasserstein(C + s * step, D).distance ** 2 for s in (1, -1))
    assert (found * step).sum() == pytest.approx((above - below) / 2, rel=1e-4)
    c = torch.tensor(C, requires_grad=True)
    ot.gromov.gromov_wasserstein2(
        c, torch.tensor(D), loss_fun="square_loss", G0=torch.tensor(plan)
    ).backward()
    assert np.allclose(c.grad.numpy(), found, atol=1e-7)


def test_matrices_that_are_no_graphons_are_refused():
    with pytest.raises(ValueError, match="square and symmetric"):
        gromov_wasserstein(np.triu(np.ones((3, 3))), np.ones((3, 3)))
    with pytest.raises(ValueError, match="square and symmetric"):
        gromov_wasserstein(np.ones((3, 2)), np.ones((3, 3)))


# Graphons


def test_pooling_a_complete_graph():
    K8 = 1 - np.eye(8)
    assert np.allclose(pooled(K8, 2), [[0.75, 1], [1, 0.75]])
    assert np.allclose(overlap(3, 5).sum(), 1)


def test_graphs_of_any_size_are_rescaled_and_never_padded():
    for n in (6, 15, 100):
        found = pooled(np.ones((n, n)), 4)
        assert np.allclose(found, 1)
        assert found.shape == (4, 4)
    sizes = [np.ones((6, 6)), np.ones((40, 40))]
    with pytest.warns(UserWarning, match="by chance"):
        assert np.allclose(estimate(sizes, 3), 1)


def test_samples_are_undirected_and_as_dense_as_their_graphon():
    generator = torch.Generator().manual_seed(0)
    A, places = sample(np.full((5, 5), 0.3), 200, generator)
    assert np.array_equal(A, A.T)
    assert not A.diagonal().any()
    pairs = 200 * 199 / 2
    assert abs(np.triu(A).sum() / pairs - 0.3) < 3 * math.sqrt(0.3 * 0.7 / pairs)
    assert places.shape == (200,)


@pytest.mark.parametrize("number", range(9))
def test_estimates_are_near_graphons_of_monotone_degrees(number):
    truth = graphon(number, 16)
    found = estimate(drawn(truth, count=10, nodes=200), 16)
    assert np.allclose(found, found.T)
    # The distance is no more than that of the plan that keeps the order.
    assert math.sqrt(value(found, truth, monotone(found, truth))) < 0.05


def warned(graphs: list[np.ndarray]) -> str:
    """What an estimate warns of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        estimate(graphs, 12)
    return " ".join(str(w.message) for w in seen)


def degree_function(W: np.ndarray) -> float:
    """The coefficient of variation of its degree function, exactly."""
    return float(W.mean(1).std() / W.mean())


def blocks(between: float) -> np.ndarray:
    """Three equal blocks, joined inside and to others with shares of which the degrees are all alike."""
    return np.kron((0.9 - between) * np.eye(3) + between, np.ones((8, 8)))


@pytest.mark.parametrize(
    "W",
    [np.full((8, 8), 0.3), np.full((8, 8), 0.05), graphon(11, 24), graphon(12, 24), blocks(0.1)],
    ids=["constant", "sparse", "two blocks", "bipartite", "three blocks"],
)
def test_graphons_whose_degree_function_is_constant_are_warned_of(W):
    assert degree_function(W) == pytest.approx(0, abs=1e-12)
    graphs = drawn(W, 6, 100)
    assert "by chance" in warned(graphs) or "same degree" in warned(graphs)


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("nodes", [60, 120])
def test_graphons_of_monotone_degrees_are_not_warned_of(number, nodes):
    W = graphon(number, 24)
    assert (np.diff(W.mean(1)) < 0).all() or (np.diff(W.mean(1)) > 0).all()
    assert warned(drawn(W, 4, nodes)) == ""


@pytest.mark.parametrize("number", [9, 10])
def test_graphons_with_a_degree_at_two_places_are_warned_of_though_not_flat(number):
    W = graphon(number, 24)
    assert degree_function(W) > 0.1  # above that of graphon 5, which is found
    assert np.allclose(W[1:, 1:].mean(1), W[1:, 1:].mean(1)[::-1])
    graphs = drawn(W, 4, 100)
    assert degree_variation(graphs)[2] > 10
    assert "same degree" in warned(graphs)


@pytest.mark.parametrize("number", [0, 1, 4, 5, 9, 10])
def test_the_variation_of_a_degree_function_is_that_of_degrees_without_noise(number):
    W = graphon(number, 200)
    found, chance, _ = degree_variation(drawn(W, 10, 150))
    assert found == pytest.approx(degree_function(W), rel=0.12)
    p = W.mean()
    assert chance == pytest.approx(math.sqrt((1 - p) / p / 150), rel=0.1)


def test_noise_has_no_variation_and_what_cannot_vary_none():
    found, _, sure = degree_variation(drawn(np.full((4, 4), 0.3), 10, 150))
    assert found < 0.03
    assert abs(sure) < 3
    assert degree_variation([np.zeros((6, 6)), 1 - np.eye(6), np.ones((2, 2))]) == (0, 0, 0)
    assert degree_spread(np.zeros((6, 6))) == 0


def test_what_sorting_leaves_is_the_largest_part_of_what_it_mixes():
    # Of |u - v| sorting finds max(a, b) with a, b = |u - 1/2|, |v - 1/2|, and leaves ± min(a, b): the
    # eigenvalues of min(a, b) on [0, 1/2] are 1/π² and less, of both halves together 2/π².
    found, left = hidden_structure(drawn(graphon(9, 600), 1, 600)[0], 32)
    assert found == pytest.approx(math.sqrt(1 / 72), rel=0.1)
    assert left == pytest.approx(2 / math.pi**2, rel=0.05)
    assert hidden_structure(drawn(graphon(0, 600), 1, 600)[0], 32)[1] == 0


def test_what_is_left_is_the_same_by_all_eigenvalues_and_by_the_largest_alone(monkeypatch):
    graph = drawn(graphon(10), 1, 90)[0]
    whole = hidden_structure(graph, 8)
    monkeypatch.setattr(sys.modules["dmkit.auxiliary.graphs.w2pgnn.graphons"], "DENSE", 0)
    assert hidden_structure(graph, 8) == pytest.approx(whole, rel=1e-4)


def test_every_kind_of_graph_is_read():
    from torch_geometric.data import Data

    A = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0.0]])
    edges = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 1, 1]])
    for graph in (A, sparse.csr_matrix(A), nx.from_numpy_array(A), Data(edge_index=edges, num_nodes=3)):
        assert np.array_equal(adjacency(graph).toarray(), A)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"square and not empty, not \(2, 3\)"),
        (np.zeros((0, 0)), "square and not empty"),
        (np.array([[0, 2.0], [2, 0]]), "from 0 to 1"),
        (np.array([[0, 1.0], [0, 0]]), "has directions"),
    ],
)
def test_what_is_no_undirected_graph_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        adjacency(matrix)


def test_bad_estimates_are_refused():
    with pytest.raises(ValueError, match="no graph"):
        estimate([])
    with pytest.raises(ValueError, match="resolution is 0"):
        estimate(drawn(graphon(0)), 0)
    with pytest.raises(ValueError, match="cannot be normalised"):
        estimate([np.zeros((4, 4))], 2, normalize=True)
    with pytest.warns(UserWarning, match="Resolution 40 is finer than"):
        estimate(drawn(graphon(1), nodes=30), 40)
    with pytest.raises(ValueError, match="numbered 0 to 12, not 13"):
        graphon(13)


def test_normalised_graphons_know_the_shape_alone():
    full, thin = drawn(graphon(0), 8, 80), drawn(0.4 * graphon(0), 8, 80)
    one, other = estimate(full, 8, normalize=True), estimate(thin, 8, normalize=True)
    assert one.mean() == pytest.approx(1)
    assert gromov_wasserstein(one, other).distance < 0.4
    assert gromov_wasserstein(estimate(full, 8), estimate(thin, 8)).distance > 0.1


def test_ego_graphs_are_what_lies_near():
    path = nx.path_graph(7)
    near, far = ego_graphs(path, [0, 3], hops=2)
    assert near.shape == (3, 3)
    assert far.shape == (5, 5)
    assert ego_graphs(path, [0, 3], hops=2, most=4)[0].shape == (3, 3)


# Bases


def test_statistics_of_the_karate_club():
    expected = [4.5882, 3.8204, 0.13903, 0.42648, -0.47561, 0.25568, 0.57064]
    assert np.allclose(statistics(nx.karate_club_graph()), expected, atol=1e-4)


def test_statistics_of_a_regular_graph_are_numbers():
    assert np.isfinite(statistics(nx.cycle_graph(6))).all()
    assert np.isfinite(statistics(np.zeros((5, 5)))).all()


def test_clusters_keep_every_graph_and_none_is_empty():
    graphs = [*[nx.cycle_graph(8)] * 3, *[nx.complete_graph(8)] * 3, nx.empty_graph(8)]
    found = clusters(graphs, 3)
    assert len(found) == 7
    assert set(found) == {0, 1, 2}
    assert found[0] == found[1] != found[3]
    assert set(clusters([nx.cycle_graph(8)] * 4, 3)) == {0}  # all alike: fewer clusters
    with pytest.raises(ValueError, match="3 clusters of 2 graphs"):
        clusters(graphs[:2], 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bases_by_mode(tmp_path):
    sources = {"a": drawn(graphon(0)), "b": drawn(graphon(4))}
    of = {mode: Bases.of(sources, mode, resolution=8, count=2) for mode in ("integr", "domain", "topo")}
    assert of["integr"].names == ("all",)
    assert of["domain"].names == ("a", "b")
    assert of["topo"].names == ("cluster 0", "cluster 1")
    mean = of["domain"].graphons.mean(0)
    assert np.allclose(of["integr"].graphons[0], mean)
    assert np.allclose(of["domain"].mixture(np.array([0.5, 0.5])), mean)
    of["domain"].save_pretrained(tmp_path / "bases")
    again = Bases.from_pretrained(tmp_path / "bases")
    assert np.array_equal(again.graphons, of["domain"].graphons)
    assert (again.mode, again.names, again.normalize) == ("domain", ("a", "b"), False)
    (tmp_path / "bases" / "bases.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError, match="holds no bases"):
        Bases.from_pretrained(tmp_path / "bases")
    with pytest.raises(FileFormatError):
        Bases.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Mode 'domain' of 1 domain: it needs 2"):
        Bases.of({"a": sources["a"]}, "domain")
    with pytest.raises(ValueError, match="Did you mean 'domain'"):
        Bases.of(sources, "domains")
    with pytest.raises(ValueError, match="no domains of graphs"):
        Bases.of({})
    for one in (sources["a"][0], np.ones((4, 4))):
        with pytest.raises(ValueError, match="one graph; give a list of graphs"):
            estimate(one)


# Mixtures (1) and (3)


@pytest.mark.parametrize(
    ("numbers", "weights"), [((1, 4), (0.3, 0.7)), ((1, 4, 8), (0.2, 0.5, 0.3)), ((0,), (1.0,))]
)
def test_a_mixture_is_recovered(numbers, weights):
    bases = exact(*numbers)
    found = fit(bases, bases.mixture(np.array(weights)))
    assert np.allclose(list(found.weights.values()), weights, atol=1e-2)
    assert found.distance < 1e-3
    assert sum(found.weights.values()) == pytest.approx(1)
    assert list(found.history) == sorted(found.history, reverse=True)  # it never rises
    if len(numbers) == 3:
        assert found.mean_distance > 10 * found.distance


def test_a_mixture_is_nearer_than_its_uniform_mean_and_any_of_its_parts():
    bases = exact(0, 1, 4)
    target = bases.mixture(np.array([0.2, 0.5, 0.3]))
    assert fit(bases, target).mean_distance == pytest.approx(0.0159, abs=1e-4)
    alone = [fit(exact(k), target).distance for k in (0, 1, 4)]
    assert alone == pytest.approx([0.205, 0.124, 0.328], abs=1e-3)


def test_one_basis_has_all_the_weight_and_the_plain_distance():
    found = fit(exact(1), graphon(8, 40))
    assert found.weights == {"graphon 1": 1.0}
    assert found.distance == pytest.approx(
        gromov_wasserstein(graphon(1, 40), graphon(8, 40)).distance, abs=1e-9
    )
    assert found.feasibility == -found.distance


def test_more_bases_never_bring_it_farther():
    target = graphon(7, 20)
    distances = [
        fit(exact(*numbers, resolution=20), target).distance for numbers in ((0,), (0, 4), (0, 4, 8))
    ]
    assert distances[1] <= distances[0] + 1e-3
    assert distances[2] <= distances[1] + 1e-3


# The three questions


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_feasibility_takes_the_best_bases_and_says_what_it_stands_on():
    sources = {"a": drawn(graphon(1), 6), "b": drawn(graphon(4), 6)}
    mixed = drawn(0.3 * graphon(1) + 0.7 * graphon(4), 6, seed=1)
    found = feasibility(sources, mixed, resolution=10, count=2)
    assert found.distance < 0.06
    assert found.feasible
    assert 0 < found.density < 1
    modes = [
        feasibility(sources, mixed, mode=m, resolution=10, count=2) for m in ("integr", "domain", "topo")
    ]
    assert found.distance == min(one.distance for one in modes)
    domain = modes[1]
    assert domain.weights["b"] == pytest.approx(0.7, abs=0.1)
    saved = Bases.of(sources, "domain", resolution=10)
    assert feasibility(saved, mixed, resolution=10).distance == domain.distance
    far = feasibility(sources, drawn(0.1 * graphon(1), 6), resolution=10, count=2)
    assert far.feasible is False
    assert far.distance > 5 * found.distance
    single = feasibility(sources, mixed[:1], resolution=10, mode="domain")
    assert math.isnan(single.floor)
    assert math.isnan(single.limit)
    assert single.feasible is None
    with pytest.raises(ValueError, match="Unknown mode 'bset'"):
        feasibility(sources, mixed, mode="bset")


def test_the_pair_that_a_target_was_mixed_from_is_selected():
    candidates = {str(k): drawn(graphon(k), 6, 80) for k in (0, 1, 4, 8)}
    target = drawn(0.5 * graphon(1) + 0.5 * graphon(4), 6, 80, seed=1)
    choices = select_pretraining(candidates, target, budget=2, resolution=10)
    assert len(choices) == 6
    assert choices[0].names == ("1", "4")
    distances = [choice.found.distance for choice in choices]
    assert distances == sorted(distances)
    for budget in (0, 5):
        with pytest.raises(ValueError, match=f"budget is {budget}; there are 4"):
            select_pretraining(candidates, target, budget=budget)


def test_many_candidates_are_added_one_after_another(monkeypatch):
    judging = sys.modules["dmkit.auxiliary.graphs.w2pgnn.judging"]
    candidates = {str(k): drawn(graphon(k), 4) for k in (0, 1, 4)}
    target = drawn(0.5 * graphon(1) + 0.5 * graphon(4), 4, seed=1)
    best = select_pretraining(candidates, target, resolution=8)[0]
    monkeypatch.setattr(judging, "EXHAUSTIVE", 2)
    (greedy,) = select_pretraining(candidates, target, resolution=8)
    assert len(greedy.names) == 2
    assert greedy.found.distance >= best.found.distance - 1e-6


def test_what_can_be_generated_is_within_the_self_distance_and_other_graphs_are_not():
    sources = {str(k): drawn(graphon(k), 12, 80, seed=k) for k in (1, 6, 8)}
    bases = Bases.of(sources, resolution=12)
    mixed = np.tensordot([0.2, 0.5, 0.3], np.stack([graphon(k) for k in (1, 6, 8)]), 1)
    for W, expected in ((mixed, True), (graphon(4), False), (0.6 * graphon(1), False)):
        found = feasibility(bases, drawn(W, 12, 80, seed=9), resolution=12)
        assert found.feasible is expected
        assert found.feasible == (found.distance <= found.limit)
    with pytest.warns(UserWarning, match="by chance|same degree"):
        found = feasibility(bases, drawn(graphon(11), 12, 80, seed=9), resolution=12)
    assert found.feasible is False


def test_self_distances_fall_with_the_number_of_graphs_and_are_the_same_again():
    many, few = drawn(graphon(1), 24, 60), drawn(graphon(1), 6, 60)
    limit = self_distance(few, 8)
    assert self_distance(many, 8) < limit == self_distance(few, 8)
    assert self_distance(few, 8, level=0.5) < limit
    assert self_distance([few[0]] * 3, 8) == pytest.approx(0, abs=1e-6)
    assert math.isnan(self_distance(few[:1], 8))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scope_names_the_nearest_first():
    sources = {"a": drawn(graphon(1), 6), "b": drawn(graphon(8), 6)}
    targets = {
        "thin": drawn(0.2 * graphon(1), 6),
        "between": drawn(0.5 * graphon(1) + 0.5 * graphon(8), 6, seed=2),
    }
    found = scope(sources, targets, resolution=10, mode="domain")
    assert list(found) == ["between", "thin"]
    assert found["thin"].distance > 5 * found["between"].distance
    assert noise_floor(targets["between"], 10) == pytest.approx(found["between"].floor)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"pip install 'dmkit\[graphs\]'"):
        gromov_wasserstein(np.ones((2, 2)), np.ones((2, 2)))
