"""BDIA on EDM grids and on DPM-Solver++(2M), against equations written out and an exact denoiser."""

import math
import warnings

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EDMEulerScheduler

from dmkit.schedulers import BDIADPMSolverMultistepScheduler, BDIAEDMScheduler


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS, SPREAD = 0.5 * randn(8, 64, seed=7), 0.5


def posterior_mean(z, alpha, sigma):
    """E[x | z] for z = alpha x + sigma n and x from eight isotropic Gaussians."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    residual = z[:, None] - alpha * MEANS
    weights = torch.softmax(-residual.square().sum(-1) / (2 * variance), -1)
    mean = (weights[..., None] * MEANS).sum(1)
    return mean + alpha * SPREAD**2 / variance * (z - alpha * mean)


def edm_network(scheduler):
    """The network whose preconditioned output is the exact denoiser; counts its calls."""

    def network(scaled, t):
        network.calls += 1
        sigma, data = math.exp(4 * float(t)), scheduler.config.sigma_data
        z = scaled * (sigma**2 + data**2) ** 0.5
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2) ** 0.5
        return (posterior_mean(z, 1.0, sigma) - c_skip * z) / c_out

    network.calls = 0
    return network


def run_edm(scheduler, num_steps, z=None):
    scheduler.set_timesteps(num_steps)
    network = edm_network(scheduler)
    z = 80 * randn(16, 64) if z is None else z
    for t in scheduler.timesteps:
        z = scheduler.step(network(scheduler.scale_model_input(z, t), t), t, z).prev_sample
    return z, network.calls


def slope(z, t):
    return (z - posterior_mean(z, 1.0, t)) / t


def recurrence_by_hand(z, times, gamma, heun):
    above = None
    for n, t in enumerate(times[:-1]):
        d = slope(z, t)

        def image(to, z=z, d=d, t=t):
            far = slope(z + (to - t) * d, to) if heun and to > 0 else d
            return z + (to - t) * (d + far) / 2

        below = image(times[n + 1])
        if above is not None:
            below = below + gamma * (above - image(times[n - 1]))
        above, z = z, below
    return z


@pytest.mark.parametrize(("order", "gamma"), [(1, 0.0), (1, 0.25), (2, 0.0), (2, 0.5)])
def test_edm_steps_are_the_equations(order, gamma):
    scheduler = BDIAEDMScheduler(gamma=gamma, solver_order=order)
    z, calls = run_edm(scheduler, 9)
    assert calls == (9 if order == 1 else 3 * 9 - 2)
    times = [0.0] + [s for _, s in scheduler._levels[1:]]
    expected = recurrence_by_hand(80 * randn(16, 64), times[::-1], gamma, heun=order == 2)
    assert torch.allclose(z, expected, atol=1e-5)  # the network's time passes through a float32 logarithm


def test_edm_without_correction_is_edm_euler():
    ours, _ = run_edm(BDIAEDMScheduler(gamma=0.0), 12)
    theirs, _ = run_edm(EDMEulerScheduler(), 12)
    assert torch.allclose(ours.float(), theirs.float(), atol=1e-3)


def test_edm_errors_against_a_fine_solution():
    """The correction at gamma = 0.25 takes a good part of Euler's error away; leapfrog is worse than none."""
    fine, _ = run_edm(BDIAEDMScheduler(gamma=0.0, solver_order=2), 200)

    def rms(num_steps, gamma, order):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            z, _ = run_edm(BDIAEDMScheduler(gamma=gamma, solver_order=order), num_steps)
        return (z - fine).square().mean().sqrt().item()

    for num_steps in (9, 18):
        assert rms(num_steps, 0.25, 1) < 0.75 * rms(num_steps, 0.0, 1)
        assert rms(num_steps, 0.5, 2) < rms(num_steps, 0.0, 2)
        assert rms(num_steps, 1.0, 2) > rms(num_steps, 0.0, 2)


def test_edm_refuses_and_warns():
    with pytest.raises(ValueError, match="solver_order must be 1"):
        BDIAEDMScheduler(solver_order=3)
    with pytest.warns(UserWarning, match=r"gamma=1 on a Karras grid.*never 1"):
        BDIAEDMScheduler(gamma=1.0)
    scheduler = BDIAEDMScheduler()
    with pytest.raises(ValueError, match="at least 2"):
        scheduler.set_timesteps(1)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="s_churn must be 0"):
        scheduler.step(randn(1, 4), scheduler.timesteps[0], randn(1, 4), s_churn=1.0)


def run_dpm(scheduler, num_steps=None, timesteps=None):
    scheduler.set_timesteps(num_steps, timesteps=timesteps)
    z = randn(16, 64).float()
    for t in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[int(t)].item()
        alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        x0 = posterior_mean(z.double(), alpha, sigma)
        z = scheduler.step(((z.double() - alpha * x0) / sigma).float(), t, z).prev_sample
    return z


DPM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
}


def test_dpm_without_correction_is_its_parent():
    ours = run_dpm(BDIADPMSolverMultistepScheduler(**DPM, steps_offset=1, gamma=0.0), 10)
    assert torch.equal(ours, run_dpm(DPMSolverMultistepScheduler(**DPM, steps_offset=1), 10))


def test_dpm_correction_is_the_recurrence():
    """Two steps by hand: first order, then 2M plus gamma times what its image at the level above misses."""
    config = {**DPM, "steps_offset": 1, "final_sigmas_type": "sigma_min"}
    scheduler, parent = (
        BDIADPMSolverMultistepScheduler(**config, gamma=0.5),
        DPMSolverMultistepScheduler(**config),
    )
    scheduler.set_timesteps(20)
    parent.set_timesteps(20)
    sigmas = [float(s) for s in scheduler.sigmas[:3]]
    levels = [(1 / (1 + s * s) ** 0.5, s / (1 + s * s) ** 0.5) for s in sigmas]
    z_N, e = randn(2, 8).float(), [randn(2, 8, seed=n).float() for n in (1, 2)]
    t = scheduler.timesteps
    z = scheduler.step(e[0], t[0], z_N).prev_sample
    got = scheduler.step(e[1], t[1], z).prev_sample
    assert torch.equal(parent.step(e[0], t[0], z_N).prev_sample, z)
    two_m = parent.step(e[1], t[1], z).prev_sample
    m = [(x - s * n) / a for x, n, (a, s) in zip((z_N, z), e, levels, strict=False)]
    mean = (m[0] + m[1]) / 2
    (a_up, s_up), (a, s) = levels[0], levels[1]
    expected = two_m + 0.5 * (z_N - (a_up * mean + s_up * (z - a * mean) / s))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, two_m, atol=1e-3)


def test_dpm_correction_helps_and_leapfrog_hurts_on_an_even_grid_down_to_the_lowest_level():
    fine = run_dpm(DPMSolverMultistepScheduler(**DPM), timesteps=list(range(951, 0, -2)))

    def rms(gamma):
        z = run_dpm(BDIADPMSolverMultistepScheduler(**DPM, gamma=gamma), timesteps=list(range(951, 0, -50)))
        return (z - fine).square().mean().sqrt().item()

    assert rms(0.25) < 0.5 * rms(0.0)
    assert rms(1.0) > rms(0.0)


def test_dpm_is_not_invertible_and_has_one_form():
    assert BDIADPMSolverMultistepScheduler.is_invertible is False
    for options in ({"solver_order": 1}, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}):
        with pytest.raises(ValueError, match=r"is DPM-Solver\+\+\(2M\).*BDIADDIMScheduler"):
            BDIADPMSolverMultistepScheduler(**options)


def test_consecutive_runs_agree():
    for scheduler, run in (
        (BDIADPMSolverMultistepScheduler(**DPM), run_dpm),
        (BDIAEDMScheduler(), lambda s, n: run_edm(s, n)[0]),
        (BDIAEDMScheduler(solver_order=2), lambda s, n: run_edm(s, n)[0]),
    ):
        first = run(scheduler, 6)
        run(scheduler, 9)
        assert torch.equal(run(scheduler, 6), first)


def test_saved_configurations_load(tmp_path):
    BDIAEDMScheduler(gamma=0.3, solver_order=2).save_pretrained(tmp_path)
    assert BDIAEDMScheduler.from_pretrained(tmp_path).config.solver_order == 2
    again = BDIADPMSolverMultistepScheduler.from_config(DPMSolverMultistepScheduler(**DPM).config)
    assert again.config.beta_schedule == "scaled_linear"
