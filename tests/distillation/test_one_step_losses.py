"""The arithmetic: noise process, guidance, the two losses, and where they lead."""

import logging
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from distilling_cases import TYPES, Kappa, step
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.distillation import LoRA, Process, fake_loss, guided, one_step_scheduler, vsd_gradient, vsd_loss
from dmkit.distillation.task import Distillation

BETAS = {"sd": (0.00085, 0.012, "scaled_linear"), "pixart": (0.0001, 0.02, "linear")}


def scheduler(prediction_type: str = "epsilon", betas: str = "sd", kind=DDPMScheduler, **changes):
    start, end, schedule = BETAS[betas]
    return kind(
        beta_start=start, beta_end=end, beta_schedule=schedule, prediction_type=prediction_type, **changes
    )


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


any_timesteps = st.lists(st.integers(0, 999), min_size=3, max_size=3).map(torch.tensor)


@settings(max_examples=30, deadline=None)
@given(any_timesteps, st.sampled_from(TYPES), st.sampled_from(list(BETAS)))
def test_the_process_is_the_schedulers(t, kind, betas):
    theirs = scheduler(kind, betas)
    process, x0, noise = Process(theirs), draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    x_t = theirs.add_noise(x0, noise, t)
    torch.testing.assert_close(process.noisy(x0, noise, t), x_t)
    target = {"epsilon": noise, "sample": x0}.get(kind)
    target = theirs.get_velocity(x0, noise, t) if target is None else target
    torch.testing.assert_close(process.target(x0, noise, t), target)
    alpha, _ = process.at(t, x0)
    # At the noisy end x_0 = (x_t - σε)/α is a difference of rounded numbers over a small one.
    error = (process.clean(target, x_t, t) - x0).abs()
    assert (error <= 1e-5 + 2e-6 / alpha).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from(TYPES), st.sampled_from(list(BETAS)))
def test_one_step_of_the_scheduler_is_the_student(t, kind, betas):
    """Also when the scheduler is built from its saved settings."""
    process = Process(scheduler(kind, betas))
    sampler = one_step_scheduler(scheduler(kind, betas, clip_sample=True, steps_offset=1), t)
    sampler = DDIMScheduler.from_config(sampler.config)
    sampler.set_timesteps(1)
    assert sampler.timesteps.tolist() == [t]
    assert sampler.init_noise_sigma == 1
    z, prediction = draw(2, 4, 2, 2), draw(2, 4, 2, 2, seed=1)
    ours = process.clean(prediction, z, sampler.timesteps)
    theirs = sampler.step(prediction, sampler.timesteps[0], z).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_last_timestep_is_the_default():
    sampler = one_step_scheduler(scheduler())
    assert (sampler.config.timestep_spacing, sampler.config.set_alpha_to_one) == ("trailing", True)
    sampler.set_timesteps(4)
    assert sampler.timesteps.tolist() == [999, 749, 499, 249]


def test_other_schedulers(caplog):
    assert len(Process(scheduler(kind=EulerDiscreteScheduler))) == 1000
    with pytest.raises(TypeError, match="FlowMatchEulerDiscreteScheduler has no `alphas_cumprod`"):
        Process(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="Did you mean 'v_prediction'"):
        Process(scheduler("v_predicton"))
    with pytest.raises(ValueError, match="timestep is 1000; it must be between 0 and 999"):
        one_step_scheduler(scheduler(), 1000)
    silent = scheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="nothing of x_0 is left"):
        one_step_scheduler(silent)
    one_step_scheduler(scheduler("v_prediction", rescale_betas_zero_snr=True))
    with caplog.at_level(logging.WARNING):
        one_step_scheduler(scheduler(betas="pixart"), 400)
        assert not caplog.records
        one_step_scheduler(scheduler(betas="pixart"))
    assert "multiplied by 157" in caplog.text


@pytest.mark.parametrize("kind", TYPES)
def test_the_gradient_in_the_image(kind):
    """σ²(ε̂_ψ - ε̂_π) over the number of elements, with both ε made from predictions in double precision."""
    process, t = Process(scheduler(kind)), torch.tensor([20, 354, 980])
    x_t, real, fake = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1), draw(3, 4, 2, 2, seed=2)
    alpha, sigma = (value.double() for value in process.at(t, x_t))

    def epsilon(prediction):
        prediction, x = prediction.double(), x_t.double()
        return {
            "epsilon": prediction,
            "v_prediction": alpha * prediction + sigma * x,
            "sample": (x - alpha * prediction) / sigma,
        }[kind]

    expected = sigma**2 * (epsilon(real) - epsilon(fake))
    gradient = vsd_gradient(process, real, fake, t)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)
    x0 = draw(3, 4, 2, 2, seed=3).requires_grad_()
    loss = vsd_loss(x0, gradient)
    loss.backward()
    # The target x̂_0 - g is rounded to x̂_0's digits.
    torch.testing.assert_close(x0.grad, gradient / x0.numel(), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(loss, gradient.square().mean() / 2)
    assert not vsd_gradient(process, real, real, t).any()


def test_the_weight_in_x0_peaks_where_half_is_noise():
    """g = -α_t σ_t (x̂_0^ψ - x̂_0^π)."""
    process = Process(scheduler("sample"))
    weights = -vsd_gradient(process, torch.ones(1000, 1), torch.zeros(1000, 1), torch.arange(1000)).flatten()
    assert abs(weights.argmax().item() - 354) <= 1
    assert weights.max().item() == pytest.approx(0.5, abs=1e-5)
    assert weights[[20, 500, 980]].tolist() == pytest.approx([0.135, 0.447, 0.076], abs=6e-4)


def test_what_is_not_finite():
    process, t = Process(scheduler()), torch.tensor([500])
    real = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]])
    gradient = vsd_gradient(process, real, torch.zeros(1, 4), t)
    assert gradient[0, :3].tolist() == [0, 0, 0]
    assert gradient[0, 3] > 0
    assert vsd_loss(torch.full((1, 4), math.nan), gradient).isnan()  # for the trainer's guard


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 999), st.integers(0, 100))
def test_the_learning_teachers_loss_is_one_for_all_prediction_types(t, seed):
    t = torch.tensor([t, 500])
    x0, noise, said = (draw(2, 3, 2, 2, seed=seed + k).double() for k in range(3))
    processes = {kind: Process(scheduler(kind)) for kind in TYPES}
    alpha, sigma = processes["epsilon"].at(t, x0)
    x_t = alpha * x0 + sigma * noise
    predictions = {"epsilon": said, "v_prediction": (said - sigma * x_t) / alpha}
    predictions["sample"] = (x_t - sigma * said) / alpha
    losses = {
        kind: fake_loss(process, predictions[kind], x0, noise, t).item()
        for kind, process in processes.items()
    }
    expected = (alpha * (said - noise)).square().mean().item()
    assert losses["epsilon"] == pytest.approx(expected, rel=1e-4)
    # v and x_0 of an ε that is wrong are large at the noisy end, and float32.
    assert losses["v_prediction"] == pytest.approx(expected, rel=1e-3)
    assert losses["sample"] == pytest.approx(expected, rel=1e-3)


def test_guidance():
    c, u = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    torch.testing.assert_close(guided(c, u, torch.tensor([1.0])), c)
    torch.testing.assert_close(guided(c, u, torch.tensor([0.0])), u)
    two = guided(c, u, torch.tensor([0.5, 4.0]))
    torch.testing.assert_close(two[0], 0.5 * u[0] + 0.5 * c[0])
    torch.testing.assert_close(two[1], -3 * u[1] + 4 * c[1])
    assert guided(c.half(), u.half(), torch.tensor([2.0])).dtype is torch.float32


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 8, width=32), st.floats(0, 8, width=32), st.sampled_from(["iteration", "sample"]))
def test_kappa(low, width, per):
    kappa = Kappa(low, low + width, per)
    drawn = kappa.draw(step(1).draws, 5)
    assert drawn.shape == ((1,) if per == "iteration" else (5,))
    assert ((drawn >= low - 1e-6) & (drawn <= low + width + 1e-5)).all()
    assert (Kappa(low, low, per).draw(step(2).draws, 5) == torch.tensor(low)).all()


def test_kappa_is_uniform():
    drawn = Kappa(0.5, 4.0, "sample").draw(step(3).draws, 40_000)
    assert drawn.mean().item() == pytest.approx(2.25, abs=0.02)
    assert drawn.var().item() == pytest.approx(3.5**2 / 12, rel=0.02)
    assert Kappa.of([1]).unguided
    assert not Kappa.of([0.5, 1]).unguided


def gaussian(process, x_t, t, mean, variance):
    """ε̂ of data N(mean, variance)."""
    alpha, sigma = process.at(t, x_t)
    return sigma * (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)


def test_between_gaussians_of_one_width_the_gradient_is_constant():
    process, t = Process(scheduler()), torch.tensor([50, 400, 900])
    x_t = draw(3, 200)
    mu, m, variance = 1.5, -0.5, 0.3
    real, fake = (gaussian(process, x_t, t, mean, variance) for mean in (mu, m))
    alpha, sigma = process.at(t, x_t)
    expected = sigma**3 * alpha * (m - mu) / (alpha**2 * variance + sigma**2)
    torch.testing.assert_close(
        vsd_gradient(process, real, fake, t), expected.expand(3, 200), rtol=1e-4, atol=1e-6
    )
    assert (expected < 0).all()  # a step against it raises x̂_0 from m towards μ


@pytest.mark.parametrize("kind", TYPES)
def test_a_student_finds_the_teachers_gaussian(kind):
    """x̂_0 = b + a z against N(1.5, 0.4²), the learning teacher in closed form."""
    process = Process(scheduler(kind))
    student = torch.tensor([-0.5, 1.0], requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.05)

    def said(x_t, t, mean, variance):
        epsilon = gaussian(process, x_t, t, mean, variance)
        alpha, sigma = process.at(t, x_t)
        x0 = (x_t - sigma * epsilon) / alpha
        return {"epsilon": epsilon, "sample": x0, "v_prediction": alpha * epsilon - sigma * x0}[kind]

    for k in range(150):
        draws = step(k).draws
        x0 = student[0] + student[1] * draws.normal((256, 1))
        t = 20 + draws.integers(961, (256,))
        x_t = process.noisy(x0.detach(), draws.normal((256, 1)), t)
        b, a = student.detach()
        gradient = vsd_gradient(process, said(x_t, t, 1.5, 0.16), said(x_t, t, b, a**2), t)
        optimizer.zero_grad()
        vsd_loss(x0, gradient).backward()
        optimizer.step()
    mean, width = student.tolist()
    assert mean == pytest.approx(1.5, abs=0.05)
    assert abs(width) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kappa(4.0, 0.5), "kappa is from 4.0 to 0.5; it must be a range"),
        (lambda: Kappa(-1.0, 0.5), "numbers of at least 0"),
        (lambda: Kappa(0.0, math.nan), "kappa is from 0.0 to nan"),
        (lambda: Kappa(1.0, 2.0, "samples"), "Unknown kappa_sampling 'samples'. Did you mean 'sample'"),
        (lambda: Kappa.of([1, 2, 3]), "one number or the two ends of a range, not 3 numbers"),
        (lambda: Distillation(Kappa.of([1]), t_range=(0.0, 0.5)), r"must lie in \(0, 1\]"),
        (lambda: Distillation(Kappa.of([1]), t_range=(0.5, 1.1)), r"t_range is from 0.5 to 1.1"),
        (lambda: Distillation(Kappa.of([1]), t_range=(0.5, 0.2)), "smaller end first"),
        (lambda: Distillation(Kappa.of([1]), t_range=(0.5, 0.5001)).timesteps(1000), "No timestep of 1000"),
        (lambda: Distillation(Kappa.of([1]), caption_dropout=1.0), r"caption_dropout is 1.0; .* \[0, 1\)"),
        (lambda: Distillation(Kappa.of([1]), nasa_scale=(0.0, math.inf)), "nasa_scale is from 0.0 to inf"),
        (lambda: LoRA(rank=0), "rank of the LoRA is 0; it must be at least 1"),
        (lambda: LoRA(learning_rate=0.0), "lora_learning_rate is 0.0; it must be positive"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_timesteps_are_swiftbrushs():
    assert Distillation(Kappa.of([1])).timesteps(1000) == (20, 981)
