"""EDICT's scheduler pair against its coupled equations written out, and its own inverse."""

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.schedulers import EDICTInverseScheduler, EDICTScheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eps(z, t):
    """Any deterministic network."""
    return torch.tanh(z.roll(1, -1) + 0.001 * t)


def run(scheduler, z, num_steps, net_dtype=torch.float64):
    scheduler.set_timesteps(num_steps)
    z = z.to(net_dtype)
    for t in scheduler.timesteps:
        z = scheduler.step(eps(z, t), t, z).prev_sample
    return scheduler.pop_pair()


def test_steps_are_the_coupled_equations():
    scheduler = EDICTScheduler(**SD, mixing=0.9)
    y, x, times = run(scheduler, randn(2, 8), 5)
    alpha_bars = [1.0, *scheduler.alphas_cumprod[times.flip(0)].double().tolist()]
    p, ours_x, ours_y = 0.9, x, y
    x = y = randn(2, 8)
    for i in range(5, 0, -1):
        a = (alpha_bars[i - 1] / alpha_bars[i]) ** 0.5
        b = (1 - alpha_bars[i - 1]) ** 0.5 - a * (1 - alpha_bars[i]) ** 0.5
        t = times[5 - i]
        x_tilde = a * x + b * eps(y, t)
        y_tilde = a * y + b * eps(x_tilde, t)
        x = p * x_tilde + (1 - p) * y_tilde
        y = p * y_tilde + (1 - p) * x
    assert torch.allclose(ours_x, x, atol=1e-12)
    assert torch.allclose(ours_y, y, atol=1e-12)


def test_without_mixing_one_step_is_ddim():
    """At p = 1 the first x~ of a level is DDIM's step."""
    scheduler, ddim = EDICTScheduler(**SD, mixing=1.0), DDIMScheduler(**SD, clip_sample=False)
    z = randn(2, 8)
    scheduler.set_timesteps(10)
    ddim.set_timesteps(10)
    t = scheduler.timesteps[0]
    ours, theirs = scheduler.step(eps(z, t), t, z), ddim.step(eps(z, t), t, z)
    assert torch.allclose(ours.prev_sample, theirs.prev_sample, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    num_steps=st.integers(2, 30),
    mixing=st.floats(0.9, 1.0),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    kind=st.sampled_from(["epsilon", "sample", "v_prediction"]),
)
def test_round_trip_of_any_schedule(num_steps, mixing, spacing, kind):
    config = {**SD, "mixing": mixing, "timestep_spacing": spacing, "prediction_type": kind}
    sampler, inverse = EDICTScheduler(**config), EDICTInverseScheduler(**config)
    z_0 = randn(2, 8)
    inverse.set_start(z_0)
    pair = run(inverse, z_0, num_steps)
    end, before, _ = run(sampler.__class__(**config), randn(2, 8), num_steps)  # another run in between
    start = sampler.set_start(*pair)
    end, before, _ = run(sampler, start, num_steps)
    assert (end - z_0).abs().max() < 1e-7
    assert (before - z_0).abs().max() < 1e-7


def test_fresh_samples_can_be_inverted_and_every_level_takes_two_calls():
    sampler = EDICTScheduler(**SD)
    inverse = EDICTInverseScheduler.from_config(sampler.config)
    z_N = randn(2, 8)
    pair = run(sampler, z_N, 20)
    assert sampler.timesteps.tolist()[:4] == [951, 951, 901, 901]
    assert len(sampler.timesteps) == len(pair.timesteps) * 2 == 40
    end, before, _ = run(inverse, inverse.set_start(*pair), 20)
    assert inverse.timesteps.tolist()[:4] == [1, 1, 51, 51]
    assert torch.allclose(end, z_N, atol=1e-10)
    assert torch.allclose(before, z_N, atol=1e-10)


def test_both_of_the_pair_are_needed():
    sampler = EDICTScheduler(**SD)
    inverse = EDICTInverseScheduler.from_config(sampler.config)
    z_0 = randn(2, 8)
    pair = run(inverse, z_0, 20)
    assert (run(sampler, pair.end, 20).end - z_0).abs().max() > 1e-4


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"mixing must lie in \(0, 1\], got 0"):
        EDICTScheduler(mixing=0)
    with pytest.raises(ValueError, match=r"mixing must lie in \(0, 1\], got 'most'"):
        EDICTScheduler(mixing="most")
    scheduler = EDICTScheduler(**SD)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="eta must be 0"):
        scheduler.step(randn(2, 8), 751, randn(2, 8), eta=1.0)
