"""BDIA's samplers and inverses against closed cases, an exact mixture denoiser and their own inverse."""

import math
import warnings

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.schedulers import (
    BDIADDIMInverseScheduler,
    BDIADDIMScheduler,
    BDIADPMSolverMultistepScheduler,
    BDIAFlowMatchEulerDiscreteInverseScheduler,
    BDIAFlowMatchEulerDiscreteScheduler,
)
from dmkit.schedulers.bdia import recurrence

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "max_amplification": math.inf,
}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


MEANS, SPREAD = 0.5 * randn(8, 64, seed=7), 0.5  # eight isotropic Gaussians in 64 dimensions


def mixture_eps(z, t, scheduler, guidance=1.0):
    """The exact noise prediction of the mixture, in z's dtype; guidance contrasts one component with all."""
    alpha_bar = scheduler.alphas_cumprod[t].double().to(z.dtype)
    alpha, sigma, means = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), MEANS.to(z.dtype)
    variance = (alpha * SPREAD) ** 2 + sigma**2
    residual = z[:, None] - alpha * means
    weights = torch.softmax(-residual.square().sum(-1) / (2 * variance), -1)
    eps = sigma * (weights[..., None] * residual).sum(1) / variance
    return eps + (guidance - 1) * (sigma * residual[:, 0] / variance - eps) if guidance != 1 else eps


def run(scheduler, z, num_steps, predict, net_dtype=None):
    """A pipeline's loop; `predict(z, t, scheduler)` in the network's dtype."""
    scheduler.set_timesteps(num_steps)
    z = z if net_dtype is None else z.to(net_dtype)
    for t in scheduler.timesteps:
        z = scheduler.step(predict(z, t, scheduler), t, z).prev_sample
    return z


def there_and_back(sampler, z, num_steps, predict, net_dtype=None):
    """max |z_N after sampling and inverting - z_N|, both neighbours kept."""
    inverse = BDIADDIMInverseScheduler.from_config(sampler.config)
    run(sampler, z, num_steps, predict, net_dtype)
    start = inverse.set_start(*sampler.pop_pair())
    run(inverse, start, num_steps, predict, net_dtype)
    return (inverse.pop_pair().end.double() - z.double()).abs().max().item()


@pytest.mark.parametrize(
    ("num_steps", "terminal_one", "gamma", "expected"),
    [
        (10, True, 0.0, 0.87967069),
        (10, True, 0.5, 0.96906805),
        (10, True, 0.94, 1.02452938),
        (10, True, 1.0, 1.03144093),
        (50, True, 0.0, 0.97285540),
        (50, True, 0.5, 0.99171839),
        (50, True, 0.94, 1.00187337),
        (50, True, 1.0, 1.00302490),
        (10, False, 1.0, 1.03219369),
    ],
)
def test_closed_case_of_a_standard_normal(num_steps, terminal_one, gamma, expected):
    """eps = sigma z: the exact flow keeps z, and the recurrence is a product of known numbers."""
    sampler = BDIADDIMScheduler(**SD, gamma=gamma, set_alpha_to_one=terminal_one)
    states = []

    def predict(z, t, scheduler):
        states.append(z.item())
        return (1 - scheduler.alphas_cumprod[t].double()).sqrt() * z

    z_0 = run(sampler, torch.ones(1, dtype=torch.float64), num_steps, predict)
    # The reference has its alphas_cumprod in double precision; ours is the model's, in single.
    assert z_0.item() == pytest.approx(expected, abs=5e-7)
    if num_steps == 10:
        assert states[1] == pytest.approx(0.99728279, abs=5e-7)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (10, {0.0: -0.019201, 0.5: -0.0064907, 1.0: 0.0064305}),
        (20, {0.0: -0.0093935, 0.5: -0.0031562, 1.0: 0.0016186}),
        (40, {0.0: -0.0046470, 0.5: -0.0015553, 1.0: 0.0004053}),
    ],
)
def test_flow_on_exponential_decay(num_steps, expected):
    """v = z gives z_0 = 1/e: gamma = 0.5 has a third of Euler's error, gamma = 1 second order."""
    for gamma, error in expected.items():
        sampler = BDIAFlowMatchEulerDiscreteScheduler(gamma=gamma)
        z = torch.ones(1, dtype=torch.float64)
        sampler.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)])
        for t in sampler.timesteps:
            z = sampler.step(z, t, z).prev_sample
        assert z.item() - math.exp(-1) == pytest.approx(error, abs=2e-6)


def test_gamma_zero_is_ddim_in_an_unmodified_pipeline():
    torch.manual_seed(0)
    pipe = DDIMPipeline(tiny_unet(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def sample():
        generator = torch.Generator().manual_seed(1)
        return pipe(batch_size=2, num_inference_steps=10, generator=generator, output_type="pt").images

    ddim = sample()
    pipe.scheduler = BDIADDIMScheduler.from_config(pipe.scheduler.config, gamma=0.0)
    assert (sample() - ddim).abs().max() <= 1e-5
    pipe.scheduler = BDIADDIMScheduler.from_config(pipe.scheduler.config, gamma=0.5)
    assert (sample() - ddim).abs().max() > 1e-3  # and another gamma is something else


# max |error|, measured with an exact mixture denoiser in 64 dimensions; the state dtype is everything's
ROUND_TRIP = {
    ("float64", 10): {1.0: 7.5e-15, 0.94: 8e-15, 0.92: 1e-14, 0.8: 4e-14, 0.5: 3e-13},
    ("float64", 50): {1.0: 5e-15, 0.94: 2.7e-14, 0.92: 7e-14, 0.8: 1.8e-11, 0.5: 3e-1},
    ("float32", 10): {1.0: 1.1e-6, 0.94: 1.3e-6, 0.92: 1.9e-6, 0.8: 3.8e-6, 0.5: 1.1e-4},
    ("float32", 50): {1.0: 9.5e-7, 0.94: 1.8e-5, 0.92: 1.7e-5, 0.8: 9e-3, 0.5: 4e7},
}


@pytest.mark.parametrize(("state_dtype", "num_steps"), list(ROUND_TRIP))
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_round_trip_error_is_that_of_rounding(state_dtype, num_steps, guidance):
    for gamma, reference in ROUND_TRIP[state_dtype, num_steps].items():
        sampler = BDIADDIMScheduler(**SD, gamma=gamma, state_dtype=state_dtype)
        z = randn(16, 64, dtype=getattr(torch, state_dtype))
        error = there_and_back(sampler, z, num_steps, lambda *a: mixture_eps(*a, guidance=guidance))
        assert error <= 20 * reference
        if gamma <= 0.8:  # and the explosion is real: damping on the way down cannot be undone for free
            assert error >= reference / 50


def test_error_grows_by_one_over_gamma_per_step():
    steps = torch.arange(20.0, 61.0, 10.0)
    for gamma in (0.8, 0.7, 0.6):
        errors = [
            there_and_back(BDIADDIMScheduler(**SD, gamma=gamma), randn(16, 64), int(n), mixture_eps)
            for n in steps
        ]
        slope = torch.linalg.lstsq(
            torch.stack([steps, torch.ones(5)], 1), torch.tensor(errors).log()[:, None]
        ).solution[0]
        assert slope.item() == pytest.approx(-math.log(gamma), rel=0.2)


# gamma = 0.94 over 50 steps multiplies rounding by 22
@pytest.mark.parametrize(("gamma", "bound"), [(1.0, 1e-14), (0.94, 3e-13)])
def test_half_precision_network_with_a_double_precision_state(gamma, bound):
    z = randn(16, 64).half()
    error = there_and_back(BDIADDIMScheduler(**SD, gamma=gamma), z, 50, mixture_eps, torch.float16)
    assert error <= bound
    coarse = BDIADDIMScheduler(**SD, gamma=gamma, state_dtype="float32")
    assert 1e-7 < there_and_back(coarse, z, 50, mixture_eps, torch.float16) < 1e-2


def test_without_a_master_state_half_precision_is_lost():
    """What the master is for: forgetting it (a pipeline that keeps only the rounded sample) costs 1e-2."""
    z = randn(16, 64).half()
    sampler = BDIADDIMScheduler(**SD)
    inverse = BDIADDIMInverseScheduler.from_config(sampler.config)
    run(sampler, z, 50, mixture_eps)
    end, before, timesteps = sampler.pop_pair()
    inverse.set_start(end.half(), before.half(), timesteps)
    run(inverse, before.half(), 50, mixture_eps)
    assert (inverse.pop_pair().end - z).abs().max() > 1e-4


@pytest.mark.parametrize("num_steps", [10, 50, 200])
@pytest.mark.parametrize("net_dtype", [torch.float64, torch.float16])
def test_bitwise_mode_is_bit_exact(num_steps, net_dtype):
    z = recurrence.quantise(randn(8, 64))
    sampler = BDIADDIMScheduler(**SD, reversible="bitwise")
    inverse = BDIADDIMInverseScheduler.from_config(sampler.config)

    def predict(*args):
        return mixture_eps(*args, guidance=3.0)

    inverse.set_start(z)
    run(inverse, z, num_steps, predict, net_dtype)
    pair = inverse.pop_pair()
    run(sampler, sampler.set_start(*pair), num_steps, predict, net_dtype)
    assert torch.equal(sampler.pop_pair().end, z)

    # One low bit of one network output on one side breaks it.
    calls = 0

    def flipped(*args):
        nonlocal calls
        out, calls = predict(*args), calls + 1
        if calls == num_steps // 2:
            ints = out.view(torch.int16 if net_dtype == torch.float16 else torch.int64)
            ints[0, 0] ^= 1 if net_dtype == torch.float16 else 1 << 20
        return out

    run(sampler, sampler.set_start(*pair), num_steps, flipped, net_dtype)
    assert not torch.equal(sampler.pop_pair().end, z)


def test_real_samples_need_the_pair():
    """From both neighbours a sample of the data comes back; from z_N alone it does not."""
    picks = torch.randint(8, (32,), generator=torch.Generator().manual_seed(3))
    x = MEANS[picks] + SPREAD * randn(32, 64, seed=4)
    for gamma, std in ((1.0, 0.99), (0.94, 0.93), (0.92, 0.81)):
        sampler = BDIADDIMScheduler(**SD, gamma=gamma)
        inverse = BDIADDIMInverseScheduler.from_config(sampler.config)
        run(inverse, x, 50, mixture_eps)
        pair = inverse.pop_pair()
        run(sampler, sampler.set_start(*pair), 50, mixture_eps)
        assert (sampler.pop_pair().end - x).abs().max() <= 1e-13
        alone = run(sampler, pair.end, 50, mixture_eps)
        assert (alone - x).abs().max() > 1e-4
        assert pair.end.std().item() == pytest.approx(std, abs=0.12)


@settings(max_examples=100, deadline=None)
@given(
    num_steps=st.integers(2, 40),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    gamma=st.floats(0.85, 1.0),
    kind=st.sampled_from(["epsilon", "sample", "v_prediction"]),
    terminal_one=st.booleans(),
    clip=st.booleans(),
    seed=st.integers(0, 100),
)
def test_round_trip_of_any_schedule(num_steps, spacing, gamma, kind, terminal_one, clip, seed):
    config = {
        "timestep_spacing": spacing,
        "gamma": gamma,
        "prediction_type": kind,
        "set_alpha_to_one": terminal_one,
        "clip_sample": clip,
    }
    z = randn(2, 3, 4, seed=seed)

    def predict(z, t, scheduler):  # any deterministic function of (z, t) must do
        return torch.tanh(z.roll(1, -1) + 0.001 * t)

    assert there_and_back(BDIADDIMScheduler(**SD | config), z, num_steps, predict) < 1e-9


@settings(max_examples=100, deadline=None)
@given(num_steps=st.integers(2, 40), gamma=st.floats(0.85, 1.0), shift=st.floats(0.5, 5), mochi=st.booleans())
def test_flow_round_trip_of_any_schedule(num_steps, gamma, shift, mochi):
    sampler = BDIAFlowMatchEulerDiscreteScheduler(
        gamma=gamma, shift=shift, invert_sigmas=mochi, max_amplification=math.inf
    )
    inverse = BDIAFlowMatchEulerDiscreteInverseScheduler.from_config(sampler.config)
    z = randn(2, 3, 4)

    def predict(z, t, scheduler):
        return torch.tanh(z.roll(1, -1) + 0.001 * t.double())

    run(sampler, z, num_steps, predict)
    run(inverse, inverse.set_start(*sampler.pop_pair()), num_steps, predict)
    assert (inverse.pop_pair().end - z).abs().max() < 1e-9


def test_prediction_types_of_one_model_walk_one_trajectory():
    ends = []
    for kind in ("epsilon", "sample", "v_prediction"):
        inverse = BDIADDIMInverseScheduler(**SD, prediction_type=kind)

        def predict(z, t, scheduler, kind=kind):
            e = mixture_eps(z, t, scheduler)
            alpha_bar = scheduler.alphas_cumprod[t].double()
            x0 = (z - (1 - alpha_bar).sqrt() * e) / alpha_bar.sqrt()
            v = alpha_bar.sqrt() * e - (1 - alpha_bar).sqrt() * x0
            return {"epsilon": e, "sample": x0, "v_prediction": v}[kind]

        ends.append(run(inverse, MEANS, 20, predict))
    assert (ends[1] - ends[0]).abs().max() < 1e-10
    assert (ends[2] - ends[0]).abs().max() < 1e-10


def test_obelm_is_its_published_formula():
    """z_{i-1} = (h_i/h_{i+1})^2 (a_{i-1}/a_{i+1}) z_{i+1} + … written out as O-BELM's paper has it."""
    sampler = BDIADDIMScheduler(**SD, solver="obelm")
    z = randn(4, 64)
    got = run(sampler, z, 10, mixture_eps)
    levels = [
        (float(a) ** 0.5, (1 - float(a)) ** 0.5) for a in sampler.alphas_cumprod[sampler.timesteps.flip(0)]
    ]
    levels = [(1.0, 0.0), *levels]
    h = [0.0] + [levels[i][1] / levels[i][0] - levels[i - 1][1] / levels[i - 1][0] for i in range(1, 11)]
    above, here = z, None
    times = sampler.timesteps.flip(0).tolist()
    e = mixture_eps(z, times[9], sampler)
    here = levels[9][0] * (z - levels[10][1] * e) / levels[10][0] + levels[9][1] * e
    for i in range(9, 0, -1):
        e = mixture_eps(here, times[i - 1], sampler)
        square = (h[i] / h[i + 1]) ** 2
        below = (
            square * levels[i - 1][0] / levels[i + 1][0] * above
            + (1 - square) * levels[i - 1][0] / levels[i][0] * here
            - h[i] * (h[i] + h[i + 1]) / h[i + 1] * levels[i - 1][0] * e
        )
        above, here = here, below
    assert torch.allclose(got, here, atol=1e-10)
    assert there_and_back(sampler, z, 10, mixture_eps) < 1e-9


def test_zero_terminal_snr_with_v_prediction_runs_and_with_epsilon_is_refused():
    config = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for solver in ("bdia", "obelm"):
        sampler = BDIADDIMScheduler(**config, prediction_type="v_prediction", solver=solver)
        out = run(sampler, randn(2, 4), 10, lambda z, t, s: torch.tanh(z))
        assert torch.isfinite(out).all()
    with pytest.raises(ValueError, match="zero terminal SNR"):
        BDIADDIMScheduler(**config).set_timesteps(10)


def test_clipping_is_off_by_default_and_optional():
    assert BDIADDIMScheduler().config.clip_sample is False
    clipped = BDIADDIMScheduler.from_config(DDIMScheduler(clip_sample=True).config, gamma=0.0)
    assert clipped.config.clip_sample is True
    z, reference = randn(2, 3, 8, 8, dtype=torch.float32), DDIMScheduler(clip_sample=True)
    for flag in (False, True):
        clipped.set_timesteps(10)
        reference.set_timesteps(10)
        ours, theirs = z * 3, z * 3
        for t in reference.timesteps:
            ours = clipped.step(torch.tanh(ours), t, ours, use_clipped_model_output=flag).prev_sample
            theirs = reference.step(torch.tanh(theirs), t, theirs, use_clipped_model_output=flag).prev_sample
        assert torch.allclose(ours, theirs, atol=1e-4)


# State hygiene


def test_consecutive_runs_agree_and_steps_may_change_between_them():
    sampler = BDIADDIMScheduler(**SD)
    z = randn(2, 64)
    first = run(sampler, z, 10, mixture_eps)
    run(sampler, z, 7, mixture_eps)
    assert torch.equal(run(sampler, z, 10, mixture_eps), first)
    # A run that was left in the middle does not leak into the next.
    sampler.set_timesteps(10)
    sampler.step(z, sampler.timesteps[0], z)
    assert torch.equal(run(sampler, z, 10, mixture_eps), first)


def test_only_edited_elements_lose_their_double_precision_and_the_run_is_marked():
    sampler = BDIADDIMScheduler(**SD)
    for edited in (False, True):
        sampler.set_timesteps(10)
        z = randn(2, 64, dtype=torch.float32)
        for k, t in enumerate(sampler.timesteps):
            z = sampler.step(mixture_eps(z, t, sampler), t, z).prev_sample
            if edited and k == 4:
                master = sampler._master.clone()
                z = z.clone()
                z[0, 0] += 0.5
        assert sampler.modified is edited
        if edited:
            z = sampler._master
    sampler.set_timesteps(10)
    assert sampler.modified is False
    assert (master != master.float()).any()  # the state was finer than what the network saw


def test_starting_in_the_middle_of_the_grid():
    """Image-to-image: the first timestep handed over decides; the step there is plain DDIM."""
    sampler, ddim = (
        BDIADDIMScheduler(**SD),
        DDIMScheduler(**{k: SD[k] for k in list(SD)[:4]}, clip_sample=False),
    )
    z = randn(2, 64)
    sampler.set_timesteps(10)
    ddim.set_timesteps(10)
    t = sampler.timesteps[4]
    eps = mixture_eps(z, t, sampler)
    assert torch.allclose(sampler.step(eps, t, z).prev_sample, ddim.step(eps, t, z).prev_sample, atol=1e-6)
    for t in sampler.timesteps[5:]:
        z = sampler.step(mixture_eps(z, t, sampler), t, z).prev_sample
    assert len(sampler.pop_pair().timesteps) == 10


def test_network_calls():
    counts = []
    sampler, z = BDIADDIMScheduler(**SD), randn(2, 64)
    inverse = BDIADDIMInverseScheduler.from_config(sampler.config)

    def predict(*args):
        counts[-1] += 1
        return mixture_eps(*args)

    for scheduler, start in ((sampler, None), (inverse, "pair"), (inverse, None)):
        counts.append(0)
        run(scheduler, z if start is None else inverse.set_start(*sampler.pop_pair()), 10, predict)
    assert counts == [10, 9, 10]


def test_half_of_the_work_of_an_inversion_is_a_shorter_grid():
    inverse, sampler = BDIADDIMInverseScheduler(**SD), BDIADDIMScheduler(**SD)
    z = randn(2, 64)
    run(inverse, inverse.set_start(z, num_levels=4), 10, mixture_eps)
    pair = inverse.pop_pair()
    assert pair.timesteps.tolist() == [301, 201, 101, 1]
    assert inverse.timesteps.tolist() == [1, 1, 101, 201]
    run(sampler, sampler.set_start(*pair), 10, mixture_eps)
    assert sampler.timesteps.tolist() == [201, 101, 1]
    assert (sampler.pop_pair().end - z).abs().max() < 1e-13


def test_configuration_is_shared_between_samplers(tmp_path):
    donor = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    sampler = BDIADDIMScheduler.from_config(donor.config, gamma=0.5)
    assert sampler.config.prediction_type == "v_prediction"
    sampler.save_pretrained(tmp_path)
    again = BDIADDIMInverseScheduler.from_pretrained(tmp_path)
    assert (again.config.gamma, again.config.beta_schedule) == (0.5, "scaled_linear")
    assert DDIMScheduler.from_config(sampler.config).config.prediction_type == "v_prediction"


def test_defaults_that_nobody_chose_do_not_travel():
    """Each class has the defaults that suit it; only chosen values pass from one to the next."""
    plain, chosen = BDIADDIMScheduler(), BDIADDIMScheduler(gamma=0.9, clip_sample=False)
    assert plain.config.gamma == 1.0
    assert BDIADPMSolverMultistepScheduler.from_config(plain.config).config.gamma == 0.25
    assert BDIADPMSolverMultistepScheduler.from_config(chosen.config).config.gamma == 0.9
    assert DDIMScheduler.from_config(plain.config).config.clip_sample is True
    assert DDIMScheduler.from_config(chosen.config).config.clip_sample is False


# Errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1.*0.92.*Karras"),
        ({"gamma": -0.1}, "gamma must lie in"),
        ({"gamma": "half"}, r"gamma must lie in \[0, 1\], got 'half'"),
        ({"gamma": None}, r"gamma must lie in \[0, 1\], got None"),
        ({"solver": "obelms"}, "Unknown solver 'obelms'. Did you mean 'obelm'"),
        ({"reversible": "bitwis"}, "Did you mean 'bitwise'"),
        ({"reversible": "bitwise", "gamma": 0.9}, "reversible='bitwise' needs gamma=1"),
        ({"state_dtype": "float16"}, "Unknown state_dtype 'float16'"),
        ({"prediction_type": "flow"}, "Unknown prediction_type 'flow'"),
    ],
)
def test_bad_options_say_what_is_wrong(options, text):
    with pytest.raises(ValueError, match=text):
        BDIADDIMScheduler(**options)


def test_inversions_that_would_explode_are_refused():
    with pytest.raises(
        ValueError, match=r"gamma=0.5 multiplies rounding errors by 1.1e\+15.*0.92.*max_amplific"
    ):
        BDIADDIMInverseScheduler(gamma=0.5).set_timesteps(50)
    with pytest.raises(ValueError, match="gamma is 0 on this grid"):
        BDIADDIMInverseScheduler(gamma=0.0).set_timesteps(10)
    BDIADDIMInverseScheduler(gamma=0.92).set_timesteps(50)
    BDIADDIMInverseScheduler(gamma=0.5, max_amplification=1e4).set_timesteps(10)


def test_misuse_of_a_run_is_refused():
    sampler, z = BDIADDIMScheduler(**SD), randn(2, 64)
    with pytest.raises(RuntimeError, match="set_timesteps"):
        sampler.step(z, 1, z)
    with pytest.raises(RuntimeError, match="after the last step"):
        sampler.pop_pair()
    with pytest.raises(ValueError, match="at least 2"):
        sampler.set_timesteps(1)
    with pytest.raises(ValueError, match="1000 steps with steps_offset=1 reach timestep 1000"):
        sampler.set_timesteps(1000)
    sampler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"eta must be 0, got 0.5"):
        sampler.step(z, 901, z, eta=0.5)
    with pytest.raises(ValueError, match=r"timestep 950 is not on this run's grid"):
        sampler.step(z, 950, z)
    run(sampler, z, 10, mixture_eps)
    with pytest.raises(RuntimeError, match="This run has ended"):
        sampler.step(z, 1, z)
    pair = sampler.pop_pair()
    with pytest.raises(RuntimeError, match="available once"):
        sampler.pop_pair()
    inverse = BDIADDIMInverseScheduler.from_config(sampler.config)
    start = inverse.set_start(*pair)
    with pytest.raises(ValueError, match="start states belong to timesteps"):
        inverse.set_timesteps(12)
    inverse.set_timesteps(10)
    with pytest.raises(ValueError, match="did not start from the state given to set_start"):
        inverse.step(z, 1, start + 1)
    with pytest.raises(ValueError, match="must have one shape"):
        inverse.set_start(z, z[:1])
    with pytest.raises(ValueError, match="`end` holds NaN"):
        inverse.set_start(z * math.nan)


def test_flow_refuses_what_cannot_be_run_back():
    with pytest.raises(ValueError, match="stochastic_sampling=True adds noise"):
        BDIAFlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.warns(UserWarning, match="Karras"):
        BDIAFlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = BDIAFlowMatchEulerDiscreteScheduler(use_karras_sigmas=True, gamma=0.25)
    sampler.set_timesteps(4)
    z = randn(2, 4)
    with pytest.raises(ValueError, match="per_token_timesteps"):
        sampler.step(z, sampler.timesteps[0], z, per_token_timesteps=torch.ones(2))


def tiny_unet(channels=1, size=16):
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
