"""The interval clustering: optimal, on every schedule, and as the worked numbers say."""

import json
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.errors import FileFormatError
from dmkit.training.ant.clustering import (
    TimestepClusters,
    affinity_cost,
    best_intervals,
    log_snr,
    snr_cost,
    timestep_cost,
)

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}


def cosine_betas() -> np.ndarray:
    """Nichol & Dhariwal's schedule in float64."""
    abar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


def interval_sum(kind: str, values: np.ndarray, left: int, right: int) -> float:
    """The cost of one interval, straight from its definition."""
    c, t = (left + right) // 2, range(left, right + 1)
    if kind == "timestep":
        return sum((x - (left + right) / 2) ** 2 for x in t)
    if kind == "affinity":
        return -sum(values[c, x] for x in t)
    return sum(abs(values[c] - values[x]) ** (1 if kind == "absolute" else 2) for x in t)


def total_cost(kind: str, values: np.ndarray, starts: tuple[int, ...], length: int) -> float:
    return sum(interval_sum(kind, values, a, b - 1) for a, b in pairwise((*starts, length)))


COSTS = {
    "timestep": lambda values: timestep_cost(len(values)),
    "snr": snr_cost,
    "absolute": lambda values: snr_cost(values, power=1),
    "affinity": affinity_cost,
}


@pytest.mark.parametrize("kind", list(COSTS))
def test_no_cut_is_better_than_the_chosen_ones(kind):
    """Brute force over all cuts, 60 random problems of each cost, with and without bounds on the length."""
    dice = np.random.default_rng(0)
    for _ in range(60):
        length, k = int(dice.integers(4, 11)), int(dice.integers(1, 5))
        values = (
            dice.uniform(-1, 1, (length, length)) if kind == "affinity" else np.sort(dice.normal(size=length))
        )
        shortest = int(dice.integers(1, length // k + 1))
        longest = int(dice.integers(-(-length // k), length + 1))
        everything = [
            (0, *cuts)
            for cuts in combinations(range(1, length), k - 1)
            if all(shortest <= b - a <= longest for a, b in pairwise((0, *cuts, length)))
        ]
        found = best_intervals(COSTS[kind](values), k, min_size=shortest, max_size=longest)
        assert found.starts in everything
        best = min(total_cost(kind, values, starts, length) for starts in everything)
        assert total_cost(kind, values, found.starts, length) == pytest.approx(best)


@pytest.mark.parametrize(
    ("schedule", "k", "settings", "starts"),
    [
        ({}, 3, {}, (0, 274, 691)),
        ({}, 5, {}, (0, 88, 332, 598, 815)),
        ({}, 8, {}, (0, 32, 122, 278, 456, 617, 758, 885)),
        (LATENT, 5, {}, (0, 84, 304, 572, 807)),
        (COSINE, 5, {}, (0, 98, 384, 754, 955)),
        (COSINE, 8, {}, (0, 46, 178, 412, 682, 877, 972, 999)),
        ({}, 5, {"min_size": 100}, (0, 100, 346, 606, 819)),
        (LATENT, 5, {"min_size": 100}, (0, 100, 322, 582, 811)),
        (COSINE, 5, {"min_size": 100}, (0, 100, 338, 668, 899)),
    ],
)
def test_worked_numbers_of_the_snr_cost(schedule, k, settings, starts):
    cost = snr_cost(log_snr(DDPMScheduler(**schedule)))
    assert best_intervals(cost, k, **settings).starts == starts


@pytest.mark.parametrize(
    ("betas", "starts", "total"),
    [
        (np.linspace(1e-4, 0.02, 1000), (0, 88, 332, 598, 815), 938.33),
        (np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, (0, 84, 304, 572, 807), 365.10),
        (cosine_betas(), (0, 98, 384, 754, 955), 1086.98),
    ],
)
def test_worked_totals_of_the_snr_cost(betas, starts, total):
    """Of schedules in float64; Diffusers' own are float32, which moves the cosine's total by 0.02."""
    abar = np.cumprod(1 - betas)
    cost = snr_cost(np.log(abar / (1 - abar)))
    found = best_intervals(cost, 5)
    assert found.starts == starts
    assert sum(cost[a, b] for a, b in found.bounds) == pytest.approx(total, abs=0.005)


@pytest.mark.parametrize(
    ("schedule", "starts"),
    [({}, (0, 153, 394, 624, 823)), (LATENT, (0, 149, 372, 605, 816)), (COSINE, (0, 133, 372, 653, 881))],
)
def test_worked_numbers_of_absolute_deviations(schedule, starts):
    cost = snr_cost(log_snr(DDPMScheduler(**schedule)), power=1)
    assert best_intervals(cost, 5).starts == starts


def test_timesteps_alone_give_uniform_cuts():
    cost = timestep_cost(1000)
    assert best_intervals(cost, 5).starts == (0, 200, 400, 600, 800)
    assert best_intervals(cost, 8).starts == tuple(range(0, 1000, 125))
    assert sorted(best_intervals(cost, 7).sizes) == [142] + [143] * 6
    assert sum(cost[a, b] for a, b in best_intervals(cost, 5).bounds) == 3_333_250


def test_blocks_of_affinity_are_found():
    blocks = np.repeat(np.arange(5), [10, 30, 10, 30, 20])
    found = best_intervals(affinity_cost(blocks[:, None] == blocks), 5)
    assert found.starts == (0, 10, 40, 50, 80)
    gaps = np.abs(np.subtract.outer(np.arange(200), np.arange(200)))
    cost = affinity_cost(np.exp(-gaps / 50))
    found = best_intervals(cost, 5)
    assert found.starts == (0, 39, 78, 118, 159)
    assert sum(cost[a, b] for a, b in found.bounds) == pytest.approx(-164.8455, abs=1e-4)


def test_costs_of_zero_are_costs():
    """Constant values make every partition equal and free."""
    found = best_intervals(snr_cost(np.zeros(10)), 4)
    assert len(found) == 4
    assert sum(found.sizes) == 10


def test_a_schedule_that_ends_in_pure_noise():
    ratio = log_snr(DDPMScheduler(rescale_betas_zero_snr=True))
    assert np.isfinite(ratio).all()
    assert ratio[-1] == ratio[-2] < ratio[-3]
    assert best_intervals(snr_cost(ratio), 5).sizes[-1] > 1


def test_flow_matching_sigmas():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ratio = log_snr(scheduler)
    sigma = 3 * 0.5 / (1 + 2 * 0.5)
    assert ratio[499] == pytest.approx(2 * np.log((1 - sigma) / sigma), abs=1e-5)
    assert np.isfinite(ratio).all()
    assert (np.diff(ratio)[:-1] < 0).all()
    scheduler.set_timesteps(10)  # what is sampled with does not change what is trained on
    assert np.array_equal(log_snr(scheduler), ratio)
    assert len(best_intervals(snr_cost(ratio), 5)) == 5


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchLCMScheduler(shift=3.0),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_every_scheduler_of_flow_matching_has_the_same_log_snr(scheduler):
    """Multistep solvers with flow sigmas have an ᾱ as well, which they do not use."""
    expected = log_snr(FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert np.allclose(log_snr(scheduler), expected, atol=1e-4)


def test_any_schedule_with_alphas_or_none():
    assert np.array_equal(log_snr(EulerDiscreteScheduler()), log_snr(DDPMScheduler()))
    assert len(log_snr(LCMScheduler())) == 1000
    with pytest.raises(TypeError, match="object has neither alphas_cumprod nor flow-matching sigmas"):
        log_snr(object())


@given(st.integers(2, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_every_timestep_is_in_the_cluster_whose_bounds_hold_it(length, data):
    k = data.draw(st.integers(1, length))
    clusters = best_intervals(timestep_cost(length), k)
    assert max(clusters.sizes) - min(clusters.sizes) <= 1
    assigned = clusters.assign(torch.arange(length)).tolist()
    assert assigned == [i for i, size in enumerate(clusters.sizes) for _ in range(size)]


def test_clusters_as_a_file(tmp_path):
    clusters = TimestepClusters((0, 3, 7), 10)
    clusters.save(tmp_path / "clusters.json")
    assert TimestepClusters.load(tmp_path / "clusters.json") == clusters
    assert clusters.bounds == [(0, 2), (3, 6), (7, 9)]
    for content, message in (
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"format": 1, "starts": [0, 5]}, "does not hold timestep clusters"),
        ({"format": 1, "starts": [1, 5], "num_timesteps": 10}, r"must start at 0 and rise below 10"),
    ):
        (tmp_path / "clusters.json").write_text(json.dumps(content))
        with pytest.raises(FileFormatError, match=message):
            TimestepClusters.load(tmp_path / "clusters.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_intervals(timestep_cost(10), 0), "10 timesteps make 1 to 10 clusters, not 0"),
        (lambda: best_intervals(timestep_cost(10), 11), "not 11"),
        (lambda: best_intervals(timestep_cost(10), 3, min_size=4), "3 clusters of 4 to 10 timesteps cannot"),
        (lambda: best_intervals(timestep_cost(10), 3, max_size=3), "3 clusters of 1 to 3 timesteps cannot"),
        (lambda: affinity_cost(np.zeros((3, 4))), r"finite and square, not \(3, 4\)"),
        (lambda: affinity_cost(np.full((3, 3), np.nan)), "finite and square"),
        (lambda: snr_cost(np.array([1.0, np.inf])), "must be finite"),
        (lambda: TimestepClusters((0, 5, 5), 10), "must start at 0 and rise"),
        (lambda: TimestepClusters((0, 10), 10), "must start at 0 and rise"),
        (lambda: TimestepClusters((0, 5), 10).assign(torch.tensor([10])), r"must lie in \[0, 10\)"),
        (lambda: TimestepClusters((0, 5), 10).assign(torch.tensor([-1])), r"must lie in \[0, 10\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
