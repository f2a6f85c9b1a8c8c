"""The search: variances, the paper's argmin and marginal rule against numbers, the closed forms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from time_shift_cases import image_variances, randn, search

from dmkit.schedulers import TimeShiftDDIMScheduler, TimeShiftEulerDiscreteScheduler
from dmkit.schedulers.time_shift.search import (
    edm_sigma,
    flow_sigma,
    flow_turning_point,
    nearest_level,
    within_image_variance,
)

ABAR = DDIMScheduler().alphas_cumprod.double()  # linear betas, 1e-4 to 0.02, T = 1000
NOISE = 1 - ABAR


def t64(*values):
    return torch.tensor(values, dtype=torch.float64)


def with_variance(variance, seed=0):
    """One image whose variance is exactly that: drawn ones are several steps off."""
    x = randn(1, 3, 8, 8, seed=seed)
    return (x - x.mean()) / x.std() * variance**0.5


def test_variance_is_of_each_image_about_its_own_mean_and_unbiased():
    x = torch.tensor([[0.0, 2.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    assert within_image_variance(x).tolist() == [2.0, 0.0]
    shifted = x + torch.tensor([5.0, 0.0]).view(2, 1, 1, 1)
    assert within_image_variance(shifted).tolist() == [2.0, 0.0]
    packed = randn(3, 5, 64)
    assert within_image_variance(packed).tolist() == pytest.approx(image_variances(packed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_variance_of_half_precision_is_computed_in_float32_at_least(dtype):
    x = randn(4, 3, 16, 16, seed=1).to(dtype)
    variance = within_image_variance(x)
    assert variance.dtype == torch.float64
    torch.testing.assert_close(variance, x.double().flatten(1).var(1), atol=1e-6, rtol=1e-6)


def test_variance_keeps_no_graph():
    assert not within_image_variance(torch.randn(1, 1, 2, 2, requires_grad=True)).requires_grad


def test_levels_of_linear_betas():
    expected = {0: 1.0e-4, 100: 0.104858, 300: 0.605989, 500: 0.922203, 700: 0.993132, 900: 0.999730}
    for t, level in expected.items():
        assert NOISE[t].item() == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize(
    ("variance", "label"), [(0.90, 480), (0.915, 491), (0.9222033, 500), (0.925, 504), (0.94, 520)]
)
def test_selection_in_a_window(variance, label):
    assert nearest_level(t64(variance), NOISE, 500, 20).tolist() == [label]


def test_ties_go_to_the_smallest_timestep():
    assert nearest_level(t64(0.5), t64(0.0, 0.4, 0.6, 1.0), 2, 2).tolist() == [1]


def test_window_is_cut_off_at_the_ends_of_the_schedule():
    low, high = t64(0.0, 5.0)
    assert nearest_level(low, NOISE, 5, 20).item() == 0
    assert nearest_level(high, NOISE, 995, 20).item() == 999


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1.5), min_size=1, max_size=5),
    st.integers(0, 999),
    st.integers(0, 120),
)
def test_search_finds_what_trying_every_candidate_finds(variances, centre, half):
    labels = nearest_level(t64(*variances), NOISE, centre, half)
    assert labels.tolist() == [search(v, NOISE.tolist(), centre, half) for v in variances]


def first_label(scheduler, variance, target):
    """The label of a state of that variance which a run's first step hands over at `target`."""
    scheduler.set_timesteps(10)
    i = scheduler.timesteps.tolist().index(target)
    return int(scheduler._choose(i - 1, with_variance(variance)))


@pytest.mark.parametrize("v_0", [0.05, 0.25, 0.6, 0.95])
@pytest.mark.parametrize("t", range(100, 800, 100))
def test_marginal_rule_returns_the_timestep_of_a_true_state(t, v_0):
    options = {"time_shift_variance": "marginal", "time_shift_data_variance": v_0}
    scheduler = TimeShiftDDIMScheduler(
        time_shift_window=80, time_shift_cutoff=0, time_shift_allow_latents=True, **options
    )
    m = float(ABAR[t]) * v_0 + 1 - float(ABAR[t])
    assert first_label(scheduler, m, t) == t


@pytest.mark.parametrize(("t", "label"), [(300, 344), (400, 434), (500, 528), (600, 623), (700, 720)])
def test_noise_rule_labels_a_true_state_of_pixel_variance_too_high(t, label):
    m = float(ABAR[t]) * 0.25 + 1 - float(ABAR[t])
    assert nearest_level(t64(m), NOISE, t, 100).item() == label
    scheduler = TimeShiftDDIMScheduler(time_shift_window=98, time_shift_cutoff=0)
    assert first_label(scheduler, m, t) == min(label, t + 49)


def test_marginal_rule_in_the_variance_exploding_form():
    options = {"time_shift_variance": "marginal", "time_shift_data_variance": 0.25}
    scheduler = TimeShiftEulerDiscreteScheduler(
        timestep_spacing="leading", time_shift_window=40, time_shift_cutoff=0, **options
    )
    sigma2 = float(NOISE[500] / ABAR[500])
    assert first_label(scheduler, sigma2 + 0.25, 500.0) == 500


def test_edm_closed_form():
    assert edm_sigma(t64(4.25, 0.25, 0.1), 0.25).tolist() == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(("variance", "sigma"), [(0.5, 0.5), (0.68, 0.8), (1.0, 1.0)])
def test_flow_closed_form_at_unit_data_variance(variance, sigma):
    assert flow_sigma(t64(variance), 1.0).item() == pytest.approx(sigma, abs=1e-7)


@given(st.floats(0.0, 1.0))
def test_flow_closed_form_without_data_variance_is_the_root(variance):
    assert flow_sigma(t64(variance), 1e-12).item() == pytest.approx(math.sqrt(variance), abs=1e-5)


@given(st.floats(0.05, 4.0), st.floats(0.0, 1.0))
def test_flow_closed_form_inverts_the_growing_branch(v_0, part):
    turning = flow_turning_point(v_0)
    sigma = turning + part * (1 - turning)
    variance = (1 - sigma) ** 2 * v_0 + sigma**2
    assert flow_sigma(t64(variance), v_0).item() == pytest.approx(sigma, abs=1e-6)
    assert flow_sigma(t64(0.0), v_0).item() == pytest.approx(turning)  # below every state's variance
