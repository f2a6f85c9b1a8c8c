"""EF21-W: theory's constants, the simulation, problems and smoothness estimates."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from dmkit.auxiliary.communication.ef21w import (
    Logistic,
    beta,
    bound,
    clone_counts,
    ef21,
    effective_alpha,
    effective_constant,
    estimate_smoothness,
    means,
    pl_step_size,
    step_size,
    tabular,
    theta,
    xi,
)
from dmkit.training.communication import Grid, Natural, RandK, TopK

CONSTANTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def cancer():
    return tabular("breast-cancer", 20)


def after(rounds, *args, **options):
    """The last of so many rounds."""
    for found in islice(ef21(*args, **options), rounds + 1):
        last = found
    return last


def squared_norm(problem, x):
    return problem.gradients(x).mean(0).square().sum().item()


# Theory


@pytest.mark.parametrize(
    ("alpha", "values"),
    [(1 / 30, (0.016808, 57.5126, 58.4958)), (0.1, (0.051317, None, 18.4868)), (1, (1, 0, 0))],
)
def test_constants_of_known_compressors(alpha, values):
    for function, value in zip((theta, beta, xi), values, strict=True):
        if value is not None:
            assert function(alpha) == pytest.approx(value, abs=5e-5)


@given(st.floats(1e-4, 1.0))
def test_the_forms_of_xi(alpha):
    assert xi(alpha) == pytest.approx(math.sqrt(beta(alpha) / theta(alpha)), rel=1e-6, abs=1e-9)
    assert xi(alpha) == pytest.approx((1 + math.sqrt(1 - alpha)) / alpha - 1, rel=1e-6, abs=1e-9)
    assert xi(alpha) < 2 / alpha


def test_beta_and_theta_have_the_best_parameter_of_youngs_inequality():
    """With 1 - θ = (1-α)(1+ν) and β = (1-α)(1+1/ν), √(β/θ) is least at ours."""
    alpha = 0.2
    best = minimize(
        lambda t: (1 - alpha) * (1 + 1 / t[0]) / (1 - (1 - alpha) * (1 + t[0])), [0.05], bounds=[(1e-3, 0.24)]
    )
    assert math.sqrt(best.fun) == pytest.approx(xi(alpha), rel=1e-4)


@given(CONSTANTS)
def test_means(each):
    arithmetic, quadratic = means(each)
    assert arithmetic <= quadratic * (1 + 1e-12)
    assert quadratic <= math.sqrt(len(each)) * arithmetic * (1 + 1e-12)


def test_means_of_the_papers_kind():
    assert means([1, 1, 1, 100]) == pytest.approx((25.75, 50.01), abs=0.005)
    arithmetic, quadratic = means([1] * 99 + [100])
    assert (arithmetic, quadratic) == pytest.approx((1.99, 10.05), abs=0.005)


def test_weights_by_smoothness_are_the_best():
    each = [0.5, 1.0, 3.0, 10.0]
    arithmetic, quadratic = means(each)
    assert effective_constant(each, each) == pytest.approx(arithmetic)
    assert effective_constant(each, [1] * 4) == pytest.approx(quadratic)
    found = minimize(
        lambda z: effective_constant(each, [math.exp(value) for value in z]), [0.0] * 4, tol=1e-12
    )
    assert found.fun == pytest.approx(arithmetic, rel=1e-6)
    weights = torch.tensor(found.x).softmax(0)
    torch.testing.assert_close(weights, torch.tensor(each).double() / sum(each), atol=1e-3, rtol=0)


@given(CONSTANTS)
def test_clones(each):
    counts, n = clone_counts(each), len(each)
    total = sum(counts)
    assert n <= total <= 2 * n
    copies = [c * total / (n * count) for c, count in zip(each, counts, strict=True) for _ in range(count)]
    assert means(copies)[0] == pytest.approx(means(each)[0])  # f is the same
    assert means(copies)[1] <= math.sqrt(2) * means(each)[0] * (1 + 1e-9)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple])
def test_constants_may_be_a_tensor(kind):
    each = [1.0, 2.5, 7.0]
    for mean in ("quadratic", "clones", "arithmetic"):
        found = step_size(2.0, kind(each), 0.1, mean)
        assert type(found) is float
        assert found == step_size(2.0, each, 0.1, mean)
    assert step_size(torch.tensor(2.0), kind(each), 0.1) == step_size(2.0, each, 0.1)
    assert pl_step_size(2.0, kind(each), 0.1, 0.3) == pl_step_size(2.0, each, 0.1, 0.3)
    assert clone_counts(kind(each)) == clone_counts(each)
    assert effective_constant(kind(each), kind(each)) == pytest.approx(means(each)[0])
    with pytest.raises(ValueError, match=r"one a worker, not \[1\.0, -1\.0\]"):
        means(kind([1.0, -1.0]))


def test_step_sizes():
    each, alpha = [1.0, 1.0, 1.0, 100.0], 0.1
    old, clones, new = (step_size(25, each, alpha, mean) for mean in ("quadratic", "clones", "arithmetic"))
    assert old == pytest.approx(1 / (25 + means(each)[1] * xi(alpha)))
    assert old < clones < new
    assert step_size(25, each, 1.0) == step_size(25, each, 1.0, "quadratic") == 1 / 25
    assert pl_step_size(25, each, alpha, mu=1e-6) == clones
    assert pl_step_size(25, each, alpha, mu=1e6) == theta(alpha) / 2e6
    assert bound(0.5, 10, 2.0, 1.0, start=3.0) == pytest.approx(2 * 2 / 5 + 3 / 10)


def test_the_alpha_of_absent_and_noisy_workers():
    assert effective_alpha(0.1) == 0.1
    assert effective_alpha(0.1, 0.5) == 0.05
    assert effective_alpha(0.1, [1.0, 0.25]) == 0.025
    assert effective_alpha(0.1, stochastic=True) == 0.05
    assert effective_alpha(1.0, stochastic=True) == 1.0
    # (1-α)(1+s) with the s of the docstring is 1 - α/2.
    assert pytest.approx(1 - 0.05) == 0.9 * (1 + 0.1 / (2 * 0.9))
    v = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = 0.3 * (TopK(0.2)(v) - v).square().sum() + 0.7 * v.square().sum()
    assert left <= (1 - effective_alpha(0.2, 0.3)) * v.square().sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xi(0.0), r"alpha is in \(0, 1\], not 0.0"),
        (lambda: xi(1.5), r"alpha is in \(0, 1\], not 1.5"),
        (lambda: means([]), "positive numbers, one a worker"),
        (lambda: means([1.0, -1.0]), "positive numbers, one a worker"),
        (lambda: means([math.nan]), "positive numbers, one a worker"),
        (lambda: effective_constant([1.0, 2.0], [1.0]), "1 weights for 2 workers"),
        (lambda: step_size(1.0, [1.0], 0.5, "harmonic"), "not 'harmonic'"),
        (lambda: step_size(0.0, [1.0], 0.5), "positive number, not 0.0"),
        (lambda: step_size(1.0, [1.0], Grid(0.1).alpha(3)), "Grid is not contractive"),
        (lambda: pl_step_size(1.0, [1.0], 0.5, 0.0), "mu is a positive number"),
        (lambda: effective_alpha(0.5, 0.0), "probabilities in"),
        (lambda: effective_alpha(0.5, []), "probabilities in"),
    ],
)
def test_what_theory_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The simulation


def test_one_worker_without_compression_is_gradient_descent(cancer):
    rows = cancer.labels != 0
    whole = Logistic.of([cancer.features[rows]], [cancer.labels[rows]])
    x, found = whole.start, after(30, whole.gradients, whole.start, TopK(1.0), 0.1)
    for _ in range(30):
        x = x - 0.1 * whole.gradients(x)[0]
    torch.testing.assert_close(found.x, x, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("compressor", [TopK(k=1), RandK(0.2), Natural(), Grid(0.05)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_the_server_knows_the_mean_of_what_workers_remember(cancer, compressor, weighted, participation):
    _, each = cancer.smoothness()
    w = torch.tensor(each if weighted else [1.0] * 20, dtype=torch.float64)
    options = {"weights": each if weighted else None, "participation": participation}
    generator = torch.Generator().manual_seed(0)
    for at in islice(
        ef21(cancer.gradients, cancer.start, compressor, 0.005, generator=generator, **options), 50
    ):
        torch.testing.assert_close(w / w.sum() @ at.own, at.average, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("compressor", [TopK(k=1), RandK(k=2)])
def test_weights_are_nothing_to_homogeneous_compressors(cancer, compressor):
    _, each = cancer.smoothness()
    plain, weighted = (
        after(
            200, cancer.gradients, cancer.start, compressor, 0.0047, weights=weights,
            generator=torch.Generator().manual_seed(0),
        )
        for weights in (None, each)
    )  # fmt: skip
    assert (plain.x - weighted.x).abs().max() < 1e-12
    scale = sum(each) / (20 * torch.tensor(each, dtype=torch.float64))
    torch.testing.assert_close(weighted.own, scale[:, None] * plain.own, atol=1e-12, rtol=1e-9)
    assert plain.bits == weighted.bits


def test_weights_are_something_to_a_grid(cancer):
    _, each = cancer.smoothness()
    plain, weighted = (
        after(200, cancer.gradients, cancer.start, Grid(0.05), 0.0047, weights=weights)
        for weights in (None, each)
    )
    assert 1e-3 < (plain.x - weighted.x).abs().max() < 1e-1


def test_everyone_always_present_is_the_plain_method(cancer):
    one = after(20, cancer.gradients, cancer.start, TopK(k=1), 0.005)
    two = after(20, cancer.gradients, cancer.start, TopK(k=1), 0.005, participation=[1.0] * 20)
    assert torch.equal(one.x, two.x)


def test_who_is_absent_sends_nothing_and_keeps_its_memory(cancer):
    generator = torch.Generator().manual_seed(0)
    rounds = ef21(cancer.gradients, cancer.start, TopK(k=1), 0.005, participation=0.5, generator=generator)
    before = next(rounds)
    assert before.bits == 20 * 30 * 32
    torch.testing.assert_close(before.own, cancer.gradients(cancer.start))
    at = next(rounds)
    moved = (at.own != before.own).any(1)
    assert 0 < moved.sum() < 20
    assert at.bits - before.bits == 64 * moved.sum()


def test_the_bound_holds(cancer):
    smoothness, each = cancer.smoothness()
    alpha, rounds = TopK(k=1).alpha(30), 400
    gap = cancer.value(cancer.start).item()  # f* is not below 0
    for mean in ("quadratic", "clones", "arithmetic"):
        step = step_size(smoothness, each, alpha, mean)
        run = islice(ef21(cancer.gradients, cancer.start, TopK(k=1), step), rounds)
        average = sum(squared_norm(cancer, at.x) for at in run) / rounds
        assert average <= bound(step, rounds, gap, alpha)


def test_the_rate_under_polyak_lojasiewicz():
    """fᵢ(x) = ½ xᵀHᵢx - bᵢᵀx, strongly convex; f* and μ are known."""
    generator = torch.Generator().manual_seed(0)
    n, d = 5, 6
    roots = torch.randn(n, d, d, generator=generator, dtype=torch.float64)
    hessians = roots @ roots.mT / d + 0.3 * torch.eye(d, dtype=torch.float64)
    linear = torch.randn(n, d, generator=generator, dtype=torch.float64)

    def gradients(x):
        return hessians @ x - linear

    mean, b = hessians.mean(0), linear.mean(0)
    best = torch.linalg.solve(mean, b)
    mu, smoothness = torch.linalg.eigvalsh(mean)[[0, -1]].tolist()
    each = torch.linalg.eigvalsh(hessians)[:, -1].tolist()
    compressor = TopK(k=2)
    step = pl_step_size(smoothness, each, compressor.alpha(d), mu)

    def gap(x):
        return (0.5 * (x - best) @ mean @ (x - best)).item()

    x0 = torch.full((d,), 3.0, dtype=torch.float64)
    for t, at in enumerate(islice(ef21(gradients, x0, compressor, step), 300)):
        assert gap(at.x) <= (1 - step * mu) ** t * gap(x0) * (1 + 1e-9)


def test_no_feedback_is_worse_than_the_old_step_which_is_worse_than_the_new(cancer):
    smoothness, each = cancer.smoothness()
    assert (smoothness, *means(each)) == pytest.approx((3.359, 3.566, 5.704), abs=5e-4)
    old, new = (step_size(smoothness, each, 1 / 30, mean) for mean in ("quadratic", "arithmetic"))
    assert new / old == pytest.approx(1.59, abs=0.005)
    norms = [
        squared_norm(cancer, after(500, cancer.gradients, cancer.start, TopK(k=1), step, feedback=feedback).x)
        for step, feedback in ((new, False), (old, True), (new, True))
    ]
    assert norms[0] > 5 * norms[1]
    assert norms[2] < 0.6 * norms[1]
    assert norms[1:] == pytest.approx([0.0555, 0.0281], rel=0.01)


def test_absence_and_noise_still_descend(cancer):
    smoothness, each = cancer.smoothness()
    start = squared_norm(cancer, cancer.start)
    for participation, batch in ((0.5, None), (1.0, 4)):
        generator = torch.Generator().manual_seed(1)
        alpha = effective_alpha(1 / 30, participation, batch is not None)
        gradients = cancer.gradients if batch is None else cancer.sampled_gradients(batch, generator)
        at = after(
            600, gradients, cancer.start, TopK(k=1), step_size(smoothness, each, alpha),
            participation=participation, generator=generator,
        )  # fmt: skip
        assert squared_norm(cancer, at.x) < 0.1 * start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "weights are 20 positive numbers"),
        ({"weights": [0.0] + [1.0] * 19}, "weights are 20 positive numbers"),
        ({"participation": 0.0}, r"probabilities in \(0, 1\], not 0.0"),
        ({"participation": 1.5}, r"probabilities in \(0, 1\], not 1.5"),
    ],
)
def test_what_the_simulation_refuses(cancer, options, message):
    with pytest.raises(ValueError, match=message):
        ef21(cancer.gradients, cancer.start, TopK(k=1), 0.1, **options)
    with pytest.raises(ValueError, match="step size must be positive, not 0"):
        ef21(cancer.gradients, cancer.start, TopK(k=1), 0)


# Problems


def test_gradients_and_constants_of_the_problem(cancer):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(cancer.value(x), x)
    torch.testing.assert_close(cancer.gradients(x.detach()).mean(0), expected)
    smoothness, each = cancer.smoothness()
    for _ in range(20):
        y, z = torch.randn(2, 30, generator=generator, dtype=torch.float64) * torch.rand(
            1, generator=generator
        )
        change, moved = cancer.gradients(y) - cancer.gradients(z), (y - z).norm()
        assert (change.norm(dim=1) <= torch.tensor(each) * moved).all()
        assert change.mean(0).norm() <= smoothness * moved
    assert smoothness <= means(each)[0]


@pytest.mark.parametrize("batch", [1, 5])
def test_sampled_gradients_are_without_bias(batch):
    problem = tabular("wine", 7)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, generator=generator, dtype=torch.float64)
    sample = problem.sampled_gradients(batch, generator)
    many = torch.stack([sample(x) for _ in range(400)])
    error = (many.mean(0) - problem.gradients(x)).abs() / (many.std(0) / 20 + 1e-12)
    assert error.max() < 6


@pytest.mark.parametrize(
    ("name", "rows", "d"), [("breast-cancer", 569, 30), ("digits", 1797, 64), ("wine", 178, 13)]
)
def test_tables(name, rows, d):
    problem = tabular(name, 10)
    assert problem.features.shape[::2] == (10, d)
    assert problem.counts.sum() == rows
    assert torch.isfinite(problem.features).all()
    fewer = tabular(name, 10, share=0.5, seed=1)
    assert fewer.counts.sum() == round(rows / 2)
    again, other = tabular(name, 10, share=0.5, seed=1), tabular(name, 10, share=0.5, seed=2)
    assert torch.equal(again.features, fewer.features)
    assert not torch.equal(other.labels, fewer.labels)


def test_an_outlier_moves_the_means_apart():
    plain, far = (means(tabular("wine", 10, outlier=factor).smoothness()[1]) for factor in (1.0, 10.0))
    assert plain[1] / plain[0] < far[1] / far[0] < math.sqrt(10)


def test_what_tables_refuse():
    with pytest.raises(ValueError, match=r"Unknown table 'wines'. Did you mean 'wine'"):
        tabular("wines")
    with pytest.raises(ValueError, match="178 rows cannot be shared by 200 workers"):
        tabular("wine", 200)
    with pytest.raises(ValueError, match="Labels are -1 or 1"):
        Logistic.of([torch.ones(2, 3)], [torch.tensor([0, 1])])
    with pytest.raises(ValueError, match=r"rows .* and as many labels"):
        Logistic.of([torch.ones(2, 3)], [torch.ones(3)])


def test_smoothness_is_the_hessians_largest_eigenvalue(cancer):
    x = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(cancer.value, x)).abs().max()
    generator = torch.Generator().manual_seed(0)
    found = estimate_smoothness(lambda: cancer.value(x), [x], iterations=50, generator=generator)
    assert found == pytest.approx(exact.item(), rel=1e-3)
    assert found <= cancer.smoothness()[0]
    layer, other = torch.nn.Linear(3, 2), torch.zeros(2, requires_grad=True)
    inputs = torch.randn(8, 3)
    parameters = [*layer.parameters(), other]
    found = estimate_smoothness(
        lambda: layer(inputs).square().mean() + other.sum(), parameters, iterations=200, generator=generator
    )
    rows = torch.cat([inputs, torch.ones(8, 1)], 1)
    assert found == pytest.approx(torch.linalg.eigvalsh(rows.T @ rows / 8)[-1].item(), rel=1e-3)
    with pytest.raises(ValueError, match="At least one iteration"):
        estimate_smoothness(lambda: cancer.value(x), [x], iterations=0)
