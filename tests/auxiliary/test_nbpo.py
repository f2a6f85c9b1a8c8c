"""NBPO: the table of gradients, its limits and fixed points, samplers, and figures of rankings."""

import math

import pytest
import scipy.sparse
import torch
from safetensors.torch import save_file
from torch import Tensor

from dmkit.auxiliary.recommendation.nbpo import (
    AdaptiveOversampler,
    BPOLoss,
    BPRLoss,
    DynamicNegativeSampler,
    FlipModel,
    Interactions,
    MatrixFactorization,
    NBPOLoss,
    Recommender,
    UniformNegativeSampler,
    evaluate_ranking,
    k_core,
    read_interactions,
    split,
)
from dmkit.auxiliary.recommendation.nbpo.generating import generate
from dmkit.auxiliary.recommendation.nbpo.losses import OBJECTIVES, log_not_clicked
from dmkit.errors import FileFormatError
from dmkit.training.randomness import Draws

# (∂/∂R_i, ∂/∂g_i, ∂/∂R_j, ∂/∂g_j) of what is ascended, at R_i = 0.7, g_i = -1.2, R_j = -0.4, g_j = 0.3
TABLE = {
    "surrogate": (0.255006, -0.154669, -0.057401, 0.170781),
    "likelihood": (0.331812, -0.231475, -0.123303, 0.118309),
    "surrogate_likelihood": (0.170392, -0.118867, -0.102245, 0.098104),
}
POINT = (0.7, -1.2, -0.4, 0.3)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def formulas(objective: str, R_i: float, g_i: float, R_j: float, g_j: float) -> tuple[float, ...]:
    D = sigma(-R_j) + sigma(g_j) * sigma(R_j)
    return {
        "surrogate": (
            sigma(-g_i) * sigma(-R_i),
            -sigma(g_i) * sigma(R_i),
            sigma(g_j) * sigma(-R_j) - sigma(R_j),
            sigma(-g_j) * sigma(R_j),
        ),
        "likelihood": (
            sigma(-R_i),
            -sigma(g_i),
            -sigma(-g_j) * sigma(R_j) * sigma(-R_j) / D,
            sigma(g_j) * sigma(-g_j) * sigma(R_j) / D,
        ),
        "surrogate_likelihood": (
            sigma(-g_i) * sigma(R_i) * sigma(-R_i),
            -sigma(-g_i) * sigma(g_i) * sigma(R_i),
            -sigma(-g_j) * sigma(R_j) * sigma(-R_j),
            sigma(g_j) * sigma(-g_j) * sigma(R_j),
        ),
    }[objective]


def ascent(loss, R_i: float, g_i: float, R_j: float, g_j: float, dtype=torch.float64) -> list[float]:
    """Minus the gradient of one pair."""
    leaves = [torch.tensor([v], dtype=dtype, requires_grad=True) for v in (R_i, g_i, R_j, g_j)]
    R, g, S, h = leaves
    found = torch.autograd.grad(loss(R, S[None], g, h[None]), leaves, allow_unused=True)
    return [0.0 if part is None else -float(part) for part in found]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_those_of_the_table(objective):
    found = ascent(NBPOLoss(objective), *POINT)
    assert found == pytest.approx(formulas(objective, *POINT), abs=1e-10)
    assert found == pytest.approx(TABLE[objective], abs=1e-6)


def test_baselines_gradients():
    R_i, _, R_j, _ = POINT
    assert ascent(BPOLoss(), *POINT) == pytest.approx([sigma(-R_i), 0, -sigma(R_j), 0], abs=1e-12)
    slope = sigma(R_j - R_i)
    assert ascent(BPRLoss(), *POINT) == pytest.approx([slope, 0, -slope, 0], abs=1e-12)


@pytest.mark.parametrize("objective", ["surrogate", "likelihood"])
def test_without_flips_it_is_bpo(objective):
    found = ascent(NBPOLoss(objective), 0.7, -40.0, -0.4, -40.0)
    plain = ascent(BPOLoss(), *POINT)
    assert (found[0], found[2]) == pytest.approx((plain[0], plain[2]), abs=1e-12)


def test_with_certain_flips_an_unclicked_item_says_nothing_to_the_likelihood_but_something_to_nbpo():
    assert ascent(NBPOLoss("likelihood"), 0.7, 40.0, -0.4, 40.0)[2] == pytest.approx(0, abs=1e-12)
    pulled = ascent(NBPOLoss("surrogate"), 0.7, 40.0, -0.4, 40.0)[2]
    assert pulled == pytest.approx(1 - 2 * sigma(-0.4), abs=1e-12)  # towards R = 0


def test_expectation_maximisation_has_the_likelihoods_gradient():
    """Why there is no objective of its own for it (Fisher's identity)."""
    _, _, R_j, g_j = POINT
    q = sigma(g_j) * sigma(R_j) / (sigma(-R_j) + sigma(g_j) * sigma(R_j))
    a = -(1 - q) * sigma(R_j) + q * sigma(-R_j)
    b = q * sigma(-g_j)
    assert ascent(NBPOLoss("likelihood"), *POINT)[2:] == pytest.approx([a, b], abs=1e-12)


def settle(clicked: int, unclicked: int, flip: float) -> float:
    """σ(R) where NBPO with a constant γ comes to rest, of one pair seen so often with and without a click."""
    R = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    g = torch.full((1,), flip, dtype=torch.float64).logit()
    loss = NBPOLoss()
    optimizer = torch.optim.LBFGS([R], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)
    far = torch.full((1,), 40.0, dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        # Each kind by itself: its partner lies where it has no slope.
        value = clicked * loss(R, -far[None], g, g[None]) + unclicked * loss(far, R[None], g, g[None])
        value.backward()
        return value

    optimizer.step(closure)
    return float(R.detach().sigmoid())


def test_fixed_points_of_a_constant_flip_probability():
    assert settle(0, 1, 0.5) == pytest.approx(1 / 3, abs=1e-6)
    assert settle(0, 1, 0.2) == pytest.approx(0.2 / 1.2, abs=1e-6)
    assert settle(2, 8, 0.3) == pytest.approx(0.322034, abs=1e-6)


def test_probabilities_of_a_pair_add_up():
    R, g = (
        axis.flatten() for axis in torch.meshgrid(*[torch.linspace(-9, 9, 19).double()] * 2, indexing="ij")
    )
    clicked = (-g).sigmoid() * R.sigmoid()
    torch.testing.assert_close(clicked + log_not_clicked(R, g).exp(), torch.ones_like(R))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_finite_at_the_ends(objective):
    for R_i in (-200.0, 200.0):
        for g in (-200.0, 200.0):
            for R_j in (-200.0, 200.0):
                assert all(map(math.isfinite, ascent(NBPOLoss(objective), R_i, g, R_j, g, torch.float32)))
                values = [torch.tensor([v]) for v in (R_i, R_j, g, g)]
                value = NBPOLoss(objective)(values[0], values[1][None], values[2], values[3][None])
                assert value.isfinite()


def test_the_clicked_item_counts_once_for_each_sampled_one():
    pos, neg = torch.tensor([0.3, -1.0]), torch.tensor([[0.1, 2.0, -0.5], [1.0, 0.0, 0.2]])
    found = BPOLoss()(pos, neg)
    expected = -(3 * torch.nn.functional.logsigmoid(pos).sum() + torch.nn.functional.logsigmoid(-neg).sum())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(BPOLoss("mean")(pos, neg), expected / 6)


def test_losses_refuse_what_does_not_fit():
    pos, neg = torch.zeros(2), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"Unknown objective 'surrogat'. Did you mean 'surrogate'"):
        NBPOLoss("surrogat")
    with pytest.raises(ValueError, match="Unknown reduction"):
        BPOLoss("none")
    with pytest.raises(ValueError, match="needs the flip logits"):
        NBPOLoss()(pos, neg)
    with pytest.raises(ValueError, match=r"not \(3,\) and \(2, 3\)"):
        BPOLoss()(torch.zeros(3), neg)
    with pytest.raises(ValueError, match=r"Flip logits of shape \(2, 2\) for scores of \(2, 3\)"):
        NBPOLoss()(pos, neg, pos, torch.zeros(2, 2))


# Interactions


def clicks(*rows: list[int], items: int = 0) -> Interactions:
    users = [u for u, row in enumerate(rows) for _ in row]
    columns = (torch.tensor(c, dtype=torch.int64) for c in (users, [i for row in rows for i in row]))
    return Interactions(*columns, len(rows), items or None)


def test_interactions_are_sorted_pairs():
    with pytest.warns(UserWarning, match="1 pairs came more than once"):
        found = Interactions(torch.tensor([1, 0, 1, 1]), torch.tensor([2, 1, 0, 2]), 3, 4)
    assert (found.users.tolist(), found.items.tolist()) == ([0, 1, 1], [1, 0, 2])
    assert found.starts.tolist() == [0, 1, 3, 3]
    table = torch.zeros(3, 4, dtype=torch.bool)
    table[0, 1] = table[1, 0] = table[1, 2] = True
    assert torch.equal(found.dense(torch.tensor([2, 0, 1, 1])), table[[2, 0, 1, 1]])
    assert torch.equal(found.contains(torch.arange(3)[:, None], torch.arange(4)), table)
    again = Interactions.from_csr(scipy.sparse.csr_matrix(table.numpy()))
    assert torch.equal(again.items, found.items)
    assert (again.num_users, again.num_items) == (3, 4)


@pytest.mark.parametrize(
    ("users", "items", "sizes", "message"),
    [
        ([0, -1], [0, 0], (None, None), "user -1 is negative"),
        ([0], [5], (None, 5), "item 5 is out of range: there are 5"),
        ([0, 1], [5], (None, None), r"not \(2,\) and \(1,\)"),
        ([], [], (None, None), "There is no user"),
    ],
)
def test_numbers_out_of_range_are_refused(users, items, sizes, message):
    with pytest.raises(ValueError, match=message):
        Interactions(torch.tensor(users).long(), torch.tensor(items).long(), *sizes)
    with pytest.raises(TypeError, match=r"int64 numbers, not torch.float32"):
        Interactions(torch.zeros(1), torch.zeros(1).long())


def test_a_core_is_what_stays_when_all_have_enough():
    # Without "rare", "c" has one item left, and then "y" one user.
    users, items = ["a", "a", "b", "b", "c", "c"], ["x", "w", "x", "w", "rare", "y"]
    found = k_core(users, items, 2)
    assert (found.user_ids, found.item_ids) == (["a", "b"], ["w", "x"])
    assert len(found.interactions) == 4
    with pytest.raises(ValueError, match="No user and item remain that have 3"):
        k_core(users, items, 3)


def test_tables_are_read(tmp_path):
    plain, recbole = tmp_path / "a.csv", tmp_path / "b.inter"
    plain.write_text("user,item,rating\nann,tea,5\nbob,tea,1\nann,cake,4\n")
    recbole.write_text("user_id:token\titem_id:token\n7\t30\n7\t10\n")
    table = read_interactions(plain, min_rating=4)
    assert (table.user_ids, table.item_ids, len(table.interactions)) == (["ann"], ["cake", "tea"], 2)
    assert read_interactions(recbole).item_ids == [10, 30]
    with pytest.raises(FileFormatError, match="has no column rating"):
        read_interactions(recbole, min_rating=1)
    with pytest.raises(FileFormatError, match="is missing or no table"):
        read_interactions(tmp_path / "none.csv")
    plain.write_text("user,item,rating\nann,tea,good\n")
    with pytest.raises(FileFormatError, match=r"the rating 'good' is no number"):
        read_interactions(plain, min_rating=1)
    plain.write_text("user,item\nann,tea\n,cake\nbob,\n")
    with pytest.warns(UserWarning, match="2 rows have no user or no item and are left out"):
        assert read_interactions(plain).user_ids == ["ann"]
    plain.write_text("who,what\n1,2\n")
    with pytest.raises(
        FileFormatError, match=r"no column user or user_id or userId; it has \['who', 'what'\]"
    ):
        read_interactions(plain)


def test_a_split_takes_shares_of_each_user():
    whole = clicks(list(range(20)), list(range(5, 15)), [0, 1], items=30)
    parts = split(whole, torch.Generator().manual_seed(0))
    assert [part.counts().tolist() for part in parts] == [[16, 8, 2], [2, 1, 0], [2, 1, 0]]
    keys = torch.cat([part.users * 30 + part.items for part in parts])
    assert torch.equal(keys.sort().values, whole.users * 30 + whole.items)
    again = split(whole, torch.Generator().manual_seed(0))
    assert torch.equal(again.test.items, parts.test.items)
    with pytest.raises(ValueError, match="leave nothing to train on"):
        split(whole, torch.Generator(), 0.5, 0.5)


# Samplers


def draws(step: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(0, step, rank=rank, world=world)


SEEN = clicks([0, 3, 4, 9], [1], [5, 6, 7, 8, 9, 0, 1, 2, 3], items=10)


def test_uniform_negatives_are_uniform_over_what_is_not_clicked():
    sampler = UniformNegativeSampler(SEEN, 100_000)
    found = sampler(torch.arange(3), MatrixFactorization(3, 10), draws())
    for user in range(3):
        counts = torch.bincount(found[user], minlength=10).double()
        free = ~SEEN.dense(torch.tensor([user]))[0]
        assert counts[~free].sum() == 0
        expected = 100_000 / int(free.sum())
        chi2 = float(((counts[free] - expected) ** 2 / expected).sum())
        assert chi2 < 30  # 8 degrees of freedom: P = 2e-4 at 30


SAMPLERS = (UniformNegativeSampler, DynamicNegativeSampler, AdaptiveOversampler)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_samplers_give_unclicked_items_the_same_for_the_same_seed_and_for_two_processes(kind):
    torch.manual_seed(0)
    model = MatrixFactorization(3, 10, dim=4)
    model.user_factors.weight.data.normal_()
    sampler, users = kind(SEEN, 5), torch.arange(3).repeat(40)
    found = sampler(users, model, draws())
    assert found.shape == (120, 5)
    assert not SEEN.contains(users[:, None], found).any()
    assert torch.equal(found, sampler(users, model, draws()))
    assert not torch.equal(found, sampler(users, model, draws(1)))
    halves = [sampler(users[60 * r : 60 * r + 60], model, draws(0, r, 2)) for r in (0, 1)]
    assert torch.equal(torch.cat(halves), found)
    with pytest.raises(ValueError, match="User 0 has clicked all 2 items"):
        kind(clicks([0, 1], [1], items=2), 5)
    with pytest.raises(ValueError, match="num_negatives is at least 1"):
        kind(SEEN, 0)


def test_dynamic_negatives_score_higher_and_adaptive_ones_stand_high_in_a_factor():
    torch.manual_seed(0)
    seen, users = clicks(*[[u] for u in range(50)], items=200), torch.arange(50)
    model = MatrixFactorization(50, 200, dim=1)
    model.user_factors.weight.data.normal_()
    model.item_factors.weight.data.normal_()
    means = [model(users, kind(seen, 200)(users, model, draws())).mean().item() for kind in SAMPLERS]
    assert means[1] > means[0] + 0.3
    assert means[2] > means[0] + 0.3
    # With one factor the adaptive rank is the rank of the score: exponential with λ = 0.05 · 200 = 10.
    found = AdaptiveOversampler(seen, 2000)(users, model, draws())
    rank = model.all_scores(users).argsort(1, descending=True).argsort(1).gather(1, found).double()
    assert float(rank.mean()) == pytest.approx(10 - 0.5, abs=0.5)
    with pytest.raises(ValueError, match="rank_scale is positive"):
        AdaptiveOversampler(seen, rank_scale=0.0)
    with pytest.raises(ValueError, match="candidates is at least 1"):
        DynamicNegativeSampler(seen, candidates=0)


# Rankings


def test_figures_of_one_user():
    table = torch.tensor([[1.0, 2.0, 0.0, 0.0]])  # b, a, c, d
    found = evaluate_ranking(lambda users: table, [], clicks([0], items=4), [1, 2, 10])
    assert found["F1@1"] == 0
    assert found["F1@2"] == pytest.approx(2 / 3)
    assert found["NDCG@2"] == pytest.approx(1 / math.log2(3))
    assert found["P@10"] == pytest.approx(0.1)
    assert found["Rec@10"] == 1
    assert found["users"] == 1


def test_clicks_of_training_are_left_out_and_equal_scores_go_by_number():
    flat, second, first = torch.zeros(2, 4), clicks([1], [], items=4), clicks([0], [], items=4)
    found = evaluate_ranking(lambda users: flat[users], [first], second, [1])
    assert found["Rec@1"] == 1
    assert found["users"] == 1  # the other has nothing to find
    found = evaluate_ranking(lambda users: flat[users], [second], second, [4])
    assert found["Rec@4"] == 0


def test_figures_are_torchmetrics_own():
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(7, 30, generator=generator)
    wanted = torch.rand(7, 30, generator=generator) < 0.2
    rows, columns = wanted.nonzero(as_tuple=True)
    found = evaluate_ranking(lambda users: scores[users], [], Interactions(rows, columns, 7, 30), [3, 8], 2)
    for k in (3, 8):
        for name, function in (
            ("P", retrieval.retrieval_precision),
            ("Rec", retrieval.retrieval_recall),
            ("NDCG", retrieval.retrieval_normalized_dcg),
        ):
            values = [float(function(scores[u], wanted[u], top_k=k)) for u in range(7) if wanted[u].any()]
            assert found[f"{name}@{k}"] == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_evaluation_refuses_what_it_cannot_rank():
    wanted = clicks([0], items=4)
    for scores, target, ks, message in (
        (torch.zeros(1, 4), wanted, [], "ks are at least 1"),
        (torch.zeros(1, 4), wanted, [2.5], "ks are at least 1 and whole"),
        (torch.zeros(1, 3), wanted, [1], r"1 users and 4 items are not \(1, 3\)"),
        (torch.full((1, 4), math.nan), wanted, [1], "A score is NaN"),
        (torch.zeros(1, 4), clicks([], items=4), [1], "nothing to find"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_ranking(lambda users, table=scores: table, [], target, ks)


def test_generated_likes_are_clicked_or_hidden():
    parts, likes = generate(torch.Generator().manual_seed(0), users=20, items=40, likes=12)
    assert likes.counts().tolist() == [12] * 20
    assert sum(map(len, parts)) == len(likes)
    assert int(parts.validation.counts().max()) == 3
    for part in parts:
        assert likes.contains(part.users, part.items).all()
    with pytest.raises(ValueError, match="likes at least one and not all"):
        generate(torch.Generator(), items=5, likes=5)


# What is asked of a recommender


def recommender(flip=None) -> Recommender:
    torch.manual_seed(0)
    scores = MatrixFactorization(3, 10, dim=4)
    scores.user_factors.weight.data.normal_()
    if flip is None:
        flip = FlipModel(3, 10, dim=4)
    return Recommender(scores, flip, SEEN, ["ann", "bob", "cy"], list("abcdefghij"))


def test_recommendations_leave_clicks_out():
    model, users = recommender(), torch.arange(3)
    found = model.recommend(users, 6)
    assert not SEEN.contains(users[:, None], found.clamp(min=0)).masked_fill(found < 0, False).any()
    assert found[2].tolist() == [4, -1, -1, -1, -1, -1]  # one item is left
    everything = model.recommend(users, 10, filter_seen=False)
    assert torch.equal(everything.sort(1).values, torch.arange(10).expand(3, 10))
    torch.testing.assert_close(
        model.predict(users, everything), model.scores.all_scores(users).sort(1, descending=True).values
    )
    with pytest.raises(ValueError, match="k is in 1 to 10, not 11"):
        model.recommend(users, 11)
    for ask in (lambda u: model.recommend(u, 2), lambda u: model.predict(u, torch.zeros(1, 2).long())):
        with pytest.raises(ValueError, match="There is no user 7: they are 0 to 2"):
            ask(torch.tensor([7]))
        with pytest.raises(ValueError, match=r"users are whole numbers, not torch\.float32"):
            ask(torch.tensor([0.5]))
    for ask in (model.predict, model.flip_probability, model.posterior_positive):
        with pytest.raises(ValueError, match="There is no item -1: they are 0 to 9"):
            ask(users[:1], torch.tensor([[3, -1]]))


def test_flips_and_posteriors_are_two_things():
    model, users, items = recommender(), torch.arange(3), torch.arange(10).expand(3, 10)
    R, g = model.scores(users, items).detach().double(), model.flip(users, items).detach().double()
    flip = model.flip_probability(users, items)
    torch.testing.assert_close(flip, g.sigmoid().float())
    assert float(flip.max()) < 0.1  # it starts with next to no flips
    expected = g.sigmoid() * R.sigmoid() / ((-R).sigmoid() + g.sigmoid() * R.sigmoid())
    torch.testing.assert_close(model.posterior_positive(users, items), expected.float())
    constant = recommender(0.5)
    assert torch.equal(constant.flip_probability(users, items), torch.full((3, 10), 0.5))
    plain = Recommender(model.scores, None, SEEN)
    with pytest.raises(ValueError, match="trained without flip probabilities"):
        plain.flip_probability(users, items)
    with pytest.raises(ValueError, match=r"in \[0, 1\), not 1.0"):
        recommender(1.0)
    with pytest.raises(ValueError, match="3 users and 10 items, the clicks of 1 and 4"):
        Recommender(model.scores, None, clicks([0], items=4))
    with pytest.raises(ValueError, match="1 and 10 names for 3 users and 10 items"):
        Recommender(model.scores, None, SEEN, ["ann"])


@pytest.mark.parametrize("flip", [None, 0.3])
def test_a_recommender_is_saved_and_read(tmp_path, flip):
    model, users = recommender(flip), torch.arange(3)
    model.save(tmp_path / "kept")
    again = Recommender.load(tmp_path / "kept")
    assert torch.equal(again.recommend(users, 5), model.recommend(users, 5))
    items = torch.arange(10).expand(3, 10)
    assert torch.equal(again.posterior_positive(users, items), model.posterior_positive(users, items))
    assert (again.user_ids, again.item_ids) == (model.user_ids, model.item_ids)
    (weights,) = (tmp_path / "kept/scores").glob("*.safetensors")
    save_file({"other.weight": torch.zeros(2)}, weights)
    with pytest.raises(FileFormatError, match=r"lacks item_factors\.weight, user_factors\.weight"):
        Recommender.load(tmp_path / "kept")
    model.save(tmp_path / "kept")
    (tmp_path / "kept/seen.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"seen.safetensors is missing"):
        Recommender.load(tmp_path / "kept")
    with pytest.raises(FileFormatError, match=r"recommender.json is missing"):
        Recommender.load(tmp_path / "nowhere")
