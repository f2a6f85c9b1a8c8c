"""The arithmetic of the gradient rules: known cases, invariants, and independent implementations."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn import Parameter

from dmkit.training.rules import (
    NashMTL,
    PCGrad,
    UncertaintyWeighting,
    build_rule,
    nash_weights,
    pcgrad_weights,
)
from dmkit.training.rules.flat import BLOCK, flat_gradient, gram, unflatten


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(seed: int, k: int, size: int) -> np.ndarray:
    """Vectors (k, size) of lengths from 0.01 to 100, many pairs in conflict."""
    dice = np.random.default_rng(seed)
    return dice.standard_normal((k, size)) * 10 ** dice.uniform(-2, 2, (k, 1))


# -- PCGrad


@pytest.mark.parametrize("seed", range(4))
def test_pcgrad_of_two_in_conflict(seed):
    g = np.array([[1.0, 0.0], [-1.0, 1.0]])
    np.testing.assert_allclose(pcgrad_weights(g @ g.T, seeded(seed)) @ g, [0.5, 1.5])


def test_pcgrad_without_conflict_is_the_sum():
    g = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    assert pcgrad_weights(g @ g.T, seeded()).tolist() == [1, 1, 1]


def pcgrad_by_vectors(g: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Algorithm 1 of the paper, on the vectors themselves."""
    total = np.zeros(g.shape[1])
    for i in range(len(g)):
        p = g[i].copy()
        for j in torch.randperm(len(g), generator=generator).tolist():
            if j != i and p @ g[j] < 0:
                p -= p @ g[j] / (g[j] @ g[j]) * g[j]
        total += p
    return total


@pytest.mark.parametrize("seed", range(30))
def test_pcgrad_equals_its_vector_form(seed):
    k = 2 + seed % 5
    g = gradients(seed, k, size=4)  # few dimensions: conflicts in most pairs
    expected = pcgrad_by_vectors(g, seeded(seed))
    np.testing.assert_allclose(pcgrad_weights(g @ g.T, seeded(seed)) @ g, expected, rtol=1e-9, atol=1e-9)


def test_pcgrad_depends_on_the_order_of_projection():
    g = gradients(1, k=5, size=4)
    outcomes = {tuple(pcgrad_weights(g @ g.T, seeded(s)).round(9)) for s in range(10)}
    assert len(outcomes) > 1


# -- Nash


@pytest.mark.parametrize(
    ("inner", "alpha"),
    [
        (np.diag([4.0, 9.0, 0.25]), [0.5, 1 / 3, 2.0]),
        (np.array([[2.0, 1.0], [1.0, 3.0]]), [0.595862, 0.486519]),
        # two of equal length n and cosine ρ: α = 1 / (n √(1 + ρ)); here n = 2, ρ = -0.75, and identical ones
        (np.array([[4.0, -3.0], [-3.0, 4.0]]), [1.0, 1.0]),
        (np.array([[4.0, 4.0], [4.0, 4.0]]), [0.5 / np.sqrt(2)] * 2),
    ],
)
def test_nash_known_solutions(inner, alpha):
    np.testing.assert_allclose(nash_weights(inner), alpha, atol=1e-6)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 8), scale=st.floats(1e-4, 1e4))
@settings(max_examples=60, deadline=None)
def test_nash_solves_its_equation_at_every_scale(seed, k, scale):
    g = scale * gradients(seed, k, size=40)
    alpha = nash_weights(g @ g.T)
    assert (alpha > 0).all()
    assert np.abs(alpha * (g @ g.T @ alpha) - 1).max() < 1e-6
    assert np.linalg.norm(alpha @ g) == pytest.approx(np.sqrt(k))
    np.testing.assert_allclose(nash_weights(9 * g @ g.T), alpha / 3, rtol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_nash_is_the_minimum_that_another_solver_finds(seed):
    g = gradients(seed, k=2 + seed % 4, size=6)
    lengths = np.linalg.norm(g, axis=1)
    cosines = (g @ g.T) / np.outer(lengths, lengths)

    def objective(logs):
        beta = np.exp(logs)
        return beta @ cosines @ beta / 2 - logs.sum(), beta * (cosines @ beta) - 1

    found = minimize(objective, np.zeros(len(g)), jac=True, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(nash_weights(g @ g.T) * lengths, np.exp(found.x), rtol=1e-5)


@pytest.mark.parametrize("inner", [[[1.0, -1.0], [-1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
def test_nash_without_a_solution_keeps_the_last_weights_and_says_so_once(inner):
    assert nash_weights(np.array(inner)) is None
    rule = NashMTL()
    with pytest.warns(UserWarning, match="no Nash solution"):
        assert rule.weigh(np.array(inner), seeded()).tolist() == [0.5, 0.5]
    rule.held = np.array([0.1, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rule.weigh(np.array(inner), seeded()).tolist() == [0.1, 0.2]


# -- uncertainty weighting


def settle(losses: list[float], steps: int = 400) -> tuple[UncertaintyWeighting, list[float]]:
    """The rule after training s on losses that do not change, and its gradient for each of them."""
    accelerator = Accelerator()
    rule = UncertaintyWeighting(len(losses))
    size = Parameter(torch.ones(len(losses)))
    optimizer = torch.optim.AdamW([{"params": [size], "lr": 0.0}, *rule.parameter_groups()], lr=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        terms = (size * torch.tensor(losses)).unbind()
        rule.backward_sum(accelerator, {str(i): loss for i, loss in enumerate(terms)}, [size])
        rule.finish(accelerator, [size], seeded())
        optimizer.step()
    return rule, size.grad.tolist()


def test_uncertainty_weights_settle_where_every_loss_counts_alike():
    rule, gradient = settle([0.5, 0.02, 3.0])
    np.testing.assert_allclose(rule.s.tolist(), np.log([0.5, 0.02, 3.0]), atol=1e-3)
    # ½ e^(-s) L = ½ for each, and ten times one loss changes nothing
    np.testing.assert_allclose(gradient, [0.5] * 3, rtol=2e-3)
    np.testing.assert_allclose(settle([0.5, 0.2, 3.0])[1], gradient, rtol=2e-3)


# -- flat gradients


def test_flat_gradients_go_back_where_they_came_from():
    parameters = [Parameter(torch.randn(2, 3)), Parameter(torch.randn(4)), Parameter(torch.randn(()))]
    loss = (parameters[0] ** 2).sum() + 3 * parameters[2]
    flat, reached = flat_gradient(loss, parameters)
    parts = unflatten(flat, parameters)
    assert reached == [True, False, True]
    assert torch.equal(parts[0], 2 * parameters[0])
    assert torch.equal(parts[1], torch.zeros(4))
    assert parts[2].item() == 3
    nothing, reached = flat_gradient(torch.zeros(()), parameters)
    assert nothing.tolist() == [0] * 11
    assert not any(reached)


def test_gram_over_block_borders():
    rows = [torch.randn(2 * BLOCK + 5, generator=seeded(i)) for i in range(3)]
    expected = torch.stack(rows).double() @ torch.stack(rows).double().T
    torch.testing.assert_close(gram(rows), expected, rtol=1e-5, atol=1.0)


# -- in one step


def one_step(rule, scaler=None) -> torch.Tensor:
    """The gradient that a rule leaves for three quadratic losses."""
    accelerator = SimpleNamespace(
        scaler=scaler,
        num_processes=1,
        backward=lambda loss: (scaler.scale(loss) if scaler else loss).backward(),
    )
    place = Parameter(torch.tensor([0.3, -0.2, 0.4]))
    targets = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0], [0.2, -2.0, 0.0]])
    losses = ((f"pull {i}", (place - target).pow(2).sum()) for i, target in enumerate(targets))
    rule.collect(accelerator, losses, [place])
    rule.finish(accelerator, [place], seeded())
    return place.grad


@pytest.mark.parametrize("rule", [PCGrad, NashMTL])
def test_a_loss_scaler_scales_the_gradient_and_nothing_else(rule):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = one_step(rule(), scaler)
    torch.testing.assert_close(scaled / 1024, one_step(rule()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [PCGrad, NashMTL])
def test_an_overflow_reaches_the_scaler_and_leaves_the_weights(rule):
    rule = rule(update_every=2)
    rule.held = np.array([0.1, 0.2, 0.3])
    gradient = one_step(rule, torch.amp.GradScaler("cpu", init_scale=3e38))
    assert not gradient.isfinite().all()
    assert rule.held.tolist() == [0.1, 0.2, 0.3]


def test_held_weights_cost_one_backward_pass_and_weigh_it():
    rule = NashMTL(update_every=3)
    assert [rule.needs_each(step) for step in range(2)] == [True, True]  # nothing held yet
    one_step(rule)
    assert [rule.needs_each(step) for step in range(7)] == [True, False, False, True, False, False, True]
    calls = []
    accelerator = SimpleNamespace(backward=lambda loss: calls.append(loss.item()))
    rule.backward_sum(
        accelerator, {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(4.0)}, []
    )
    assert calls == [pytest.approx(rule.held @ [1, 2, 4])]
    with pytest.raises(ValueError, match="NashMTL holds 3 weights, but got 1 losses"):
        rule.backward_sum(accelerator, {"a": torch.tensor(1.0)}, [])


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"Unknown gradient rule 'nsh'\. Did you mean 'nash'"):
        build_rule("nsh", 3)
    with pytest.raises(ValueError, match="update_every counts steps and is at least 1, not 0"):
        build_rule("pcgrad", 3, update_every=0)
    with pytest.raises(ValueError, match="learning rate of s must be positive, not 0"):
        build_rule("uw", 3, learning_rate=0)
    with pytest.raises(ValueError, match="num_losses is at least 1, not 0"):
        build_rule("uw", 0)
    with pytest.raises(ValueError, match="was made for 2 losses, but got 1"):
        UncertaintyWeighting(2).backward_sum(Accelerator(), {"a": torch.zeros(())}, [])
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(NotImplementedError, match="PCGrad needs whole gradients, which FSDP shards"):
        PCGrad().prepare(sharded)
    assert [type(build_rule(name, 2)).__name__ for name in ("uw", "pcgrad", "nash")] == [
        *("UncertaintyWeighting", "PCGrad", "NashMTL")
    ]
    assert [build_rule(name, 2).update_every for name in ("pcgrad", "nash")] == [1, 25]
