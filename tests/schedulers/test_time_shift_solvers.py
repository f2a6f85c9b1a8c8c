"""Every Time-Shift class against its algorithm written out, and against its parent where nothing shifts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from time_shift_cases import (
    algorithm_3,
    at,
    ddim_step,
    image_variances,
    net,
    ours,
    parent,
    randn,
    sample,
    states,
    transfer,
)

X = states(0.995, 1.0, 1.004)
FIRST_ORDER = {
    "TimeShiftDDIMScheduler": {},
    "TimeShiftDPMSolverMultistepScheduler": {"solver_order": 1, "timestep_spacing": "leading"},
    "TimeShiftDEISMultistepScheduler": {"solver_order": 1, "timestep_spacing": "leading"},
    "TimeShiftUniPCMultistepScheduler": {
        "solver_order": 1,
        "timestep_spacing": "leading",
        "disable_corrector": list(range(20)),
        "final_sigmas_type": "zero",
    },
}


def stochastic_step(abar, seed):
    """Ho et al. 2020, equations (7) and (15), between any two ᾱ; the variance that Diffusers calls
    fixed_small.
    """
    generator = torch.Generator().manual_seed(seed)

    def step(x, e, start, end, i):
        a, b = (v.view(-1, *[1] * (x.ndim - 1)) for v in (at(abar, start, len(x)), at(abar, end, len(x))))
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        alpha = a / b
        mean = b.sqrt() * (1 - alpha) / (1 - a) * x0 + alpha.sqrt() * (1 - b) / (1 - a) * x
        if start[0] == 0:
            return mean
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return mean + ((1 - b) / (1 - a) * (1 - alpha)).clamp(min=1e-20).sqrt() * z

    return step


# -- label and level mode, first order -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["label", "level"])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_solvers_run_algorithm_3(name, mode):
    """DPM-Solver++, DEIS and UniPC of order one are DDIM; so are they with shifted labels."""
    options = {"time_shift_window": 40, "time_shift_cutoff": 300, "time_shift_mode": mode}
    scheduler, seen = ours(name, **FIRST_ORDER[name], **options), []
    x = sample(scheduler, X, 9, seen=seen)
    abar, tau = scheduler.alphas_cumprod.double(), scheduler._schedule
    last = float(abar[0]) if "DEIS" in name else 1.0  # where Diffusers' own grids end
    expected, labels = algorithm_3(X, tau, (1 - abar).tolist(), ddim_step(abar, last), 40, 300, mode)
    assert seen == [step[0] for step in labels]
    torch.testing.assert_close(x, expected, atol=2e-5, rtol=2e-5)
    plain = sample(parent(name, **FIRST_ORDER[name]), X, 9)
    assert (x - plain).abs().max() > 1e-3  # far above the tolerance: it makes a difference


@pytest.mark.parametrize("mode", ["label", "level"])
def test_ddpm_takes_its_own_posterior_between_shifted_levels(mode):
    options = {"time_shift_window": 40, "time_shift_cutoff": 300, "time_shift_mode": mode}
    scheduler, seen = ours("TimeShiftDDPMScheduler", **options), []
    x = sample(scheduler, X, 10, seen=seen, generator=torch.Generator().manual_seed(3))
    abar = scheduler.alphas_cumprod.double()
    expected, labels = algorithm_3(
        X, scheduler._schedule, (1 - abar).tolist(), stochastic_step(abar, 3), 40, 300, mode
    )
    assert seen == [step[0] for step in labels]
    torch.testing.assert_close(x, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(eta):
    """ς = eta sqrt((1-ᾱ_u)/(1-ᾱ_s)) sqrt(1-ᾱ_s/ᾱ_u)."""
    scheduler = ours("TimeShiftDDIMScheduler", time_shift_window=40, time_shift_cutoff=300)
    x = sample(scheduler, X, 10, eta=eta, generator=torch.Generator().manual_seed(3))
    abar, generator = scheduler.alphas_cumprod.double(), torch.Generator().manual_seed(3)

    def step(x, e, start, end, i):
        a, b = (v.view(-1, 1, 1, 1) for v in (at(abar, start, len(x)), at(abar, end, len(x))))
        deviation = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return b.sqrt() * x0 + (1 - b - deviation**2).sqrt() * e + deviation * z

    expected, _ = algorithm_3(X, scheduler._schedule, (1 - abar).tolist(), step, 40, 300)
    torch.testing.assert_close(x, expected, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("mode", ["label", "level"])
def test_euler_searches_among_variance_exploding_levels(mode):
    options = {"time_shift_window": 40, "time_shift_cutoff": 300, "time_shift_mode": mode}
    scheduler, seen = ours("TimeShiftEulerDiscreteScheduler", timestep_spacing="leading", **options), []
    x = sample(scheduler, X, 10, seen=seen)
    abar = scheduler.alphas_cumprod.double()
    sigma = ((1 - abar) / abar).sqrt()

    def step(x, e, start, end, i):
        a, b = ((1 / v - 1).sqrt().view(-1, 1, 1, 1) for v in (at(abar, start, 3), at(abar, end, 3)))
        return x + (b - a) * e

    def scaled(x, t):
        return net(x / (1 + sigma[t] ** 2).sqrt().view(-1, 1, 1, 1), t)

    tau = [int(t) for t in scheduler._schedule]
    start = X * float((sigma[tau[0]] ** 2 + 1).sqrt())
    expected, labels = algorithm_3(start, tau, (sigma**2).tolist(), step, 40, 300, mode, network=scaled)
    assert seen == [step[0] for step in labels]
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


# -- multistep -----------------------------------------------------------------------------------------------


def test_dpm_solver_2m_remembers_the_levels_its_outputs_were_evaluated_at():
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, with λ of the labels."""
    scheduler, seen = (
        ours(
            "TimeShiftDPMSolverMultistepScheduler",
            timestep_spacing="leading",
            time_shift_window=40,
            time_shift_cutoff=300,
        ),
        [],
    )
    x = sample(scheduler, X, 9, seen=seen)
    abar = scheduler.alphas_cumprod.double()
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    lam = (alpha / sigma).log()
    earlier = []

    def step(x, e, start, end, i):
        s = start[0]
        x0 = (x - sigma[s] * e) / alpha[s]
        if end is None:
            return x0
        u = end[0]
        h, d = lam[u] - lam[s], x0
        if earlier:
            before, x0_before = earlier[-1]
            d = x0 + (x0 - x0_before) / (2 * (lam[s] - lam[before]) / h)
        earlier.append((s, x0))
        return sigma[u] / sigma[s] * x - alpha[u] * torch.expm1(-h) * d

    expected, labels = algorithm_3(X, scheduler._schedule, (1 - abar).tolist(), step, 40, 300)
    assert seen == [step[0] for step in labels]
    torch.testing.assert_close(x, expected, atol=5e-5, rtol=5e-5)


def multistep(history):
    """Adams-Bashforth of the order that the history allows, up to four."""
    weights = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    recent = history[:-5:-1]
    return sum(w * e for w, e in zip(weights[len(recent)], recent, strict=True))


def pndm_start(network, move, x, start, end, middle):
    """F-PNDM's start: Runge-Kutta with φ (Liu et al. 2022, equation 12)."""
    e1 = network(x, start)
    e2 = network(move(x, e1, start, middle), middle)
    e3 = network(move(x, e2, start, middle), middle)
    e4 = network(move(x, e3, start, end), end)
    return e1, (e1 + 2 * e2 + 2 * e3 + e4) / 6


@pytest.mark.parametrize("mode", ["label", "level"])
@pytest.mark.parametrize("fourth_order_start", [False, True], ids=["S-PNDM", "F-PNDM"])
def test_pndm_shifts_completed_steps(fourth_order_start, mode):
    """Times that a step only tries (S-PNDM's first, the stages of F-PNDM's starts) are not shifted; of a
    start from a shifted state the middle stages are half way to its end.
    """
    options = {"time_shift_window": 98, "time_shift_cutoff": 300, "time_shift_mode": mode}
    settings_ = {"skip_prk_steps": not fourth_order_start, "set_alpha_to_one": True}
    scheduler, seen = ours("TimeShiftPNDMScheduler", **settings_, **options), []
    x = sample(scheduler, X, 10, seen=seen)
    abar, history, called = scheduler.alphas_cumprod.double(), [], []

    def network(x, t):
        called.append(t)
        return net(x, t)

    def move(x, e, s, u):
        return transfer(x, e, abar[[s]], abar[[u]])

    def step(x, e, start, end, i):
        s, u, to = start[0], 900 - 100 * (i + 1), at(abar, end, len(x))
        if fourth_order_start and i < 3:
            e, combined = pndm_start(network, move, x, s, u, (s + u) // 2)
        else:
            called.append(s)
            combined = multistep([*history, e])
            if i == 0:  # ½ (ε(x, s) + ε(φ(x, ε, s, u), u))
                combined = (e + network(move(x, e, s, u), u)) / 2
        history.append(e)
        return transfer(x, combined, abar[start], to)

    tau = list(range(900, -1, -100))
    expected, _ = algorithm_3(X, tau, (1 - abar).tolist(), step, 98, 300, mode)
    assert seen == called
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 999), st.integers(0, 999))
def test_pndm_transfer_is_the_ddim_step(s, u):
    scheduler = ours("TimeShiftPNDMScheduler")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    e = randn(*X.shape, seed=9)
    abar = scheduler.alphas_cumprod
    moved = scheduler._get_prev_sample(X, s, u, e)
    scale = (abar[u] / abar[s]).sqrt()
    torch.testing.assert_close(moved, transfer(X, e, abar[[s]], abar[[u]]), atol=1e-6 * scale, rtol=1e-6)


# -- continuous levels ---------------------------------------------------------------------------------------


def continuous(x, sigmas, label_of, base_step, may_shift, fraction, network):
    """Algorithm 3 with a closed form, clipped to a fraction of the step to each side of the state."""
    level, seen = sigmas[0], []
    for i, end in enumerate(sigmas[1:]):
        seen.append(level)
        x = base_step(x, network(x, level), level, end)
        level = end
        if i + 2 < len(sigmas) and may_shift(sigmas[i], end):
            variance = sum(image_variances(x)) / len(x)
            low, high = end - fraction * (end - sigmas[i + 2]), end + fraction * (sigmas[i] - end)
            level = min(max(label_of(variance), low), high)
    return x, seen


def grid(name, steps):
    theirs = parent(name)
    theirs.set_timesteps(steps)
    return theirs.sigmas.double().tolist()


def test_edm_euler_steps_from_the_closed_form():
    scheduler, seen = ours("TimeShiftEDMEulerScheduler", time_shift_cutoff=1.0), []
    x = sample(scheduler, X, 10, seen=seen)
    s_d = 0.5

    def denoise(x, sigma):  # Karras et al. 2022, table 1
        c_in, total = (sigma**2 + s_d**2) ** -0.5, sigma**2 + s_d**2
        raw = net(c_in * x, 0.25 * math.log(sigma))
        return s_d**2 / total * x + sigma * s_d * total**-0.5 * raw

    expected, levels = continuous(
        X * scheduler.init_noise_sigma,
        grid("TimeShiftEDMEulerScheduler", 10),
        lambda v: max(v - s_d**2, 0) ** 0.5,
        lambda x, d, s, u: x + (u - s) * (x - d) / s,
        lambda here, new: here > 1.0,
        0.3,
        denoise,
    )
    assert seen == pytest.approx([0.25 * math.log(s) for s in levels], abs=1e-4)
    torch.testing.assert_close(x, expected.to(x.dtype), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("v_0", [None, 0.3])
def test_flow_euler_steps_from_the_growing_branch(v_0):
    scheduler, seen = ours("TimeShiftFlowMatchEulerDiscreteScheduler", time_shift_data_variance=v_0), []
    network = lambda x, t: x - 0.6 * net(x, t)  # noqa: E731
    x = sample(scheduler, X, 20, network=network, seen=seen)
    v = v_0 or 1.0

    def root(variance):
        low, high = v / (1 + v), 2.0  # bisection on (1-σ)² v_0 + σ², which grows here
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (1 - middle) ** 2 * v + middle**2 < variance else (low, middle)
        return low

    expected, levels = continuous(
        X,
        grid("TimeShiftFlowMatchEulerDiscreteScheduler", 20),
        root,
        lambda x, e, s, u: x + (u - s) * e,
        lambda here, new: new > max(0.6, v / (1 + v) + 0.1),
        0.3,
        lambda x, s: network(x, 1000 * s),
    )
    assert seen == pytest.approx([1000 * s for s in levels], abs=1e-2)
    assert len(scheduler.time_shift_trace) >= 5
    torch.testing.assert_close(x, expected.to(x.dtype), atol=1e-4, rtol=1e-4)
