"""Epsilon scaling: the three forms of a prediction, and every solver that offers it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from time_shift_cases import CLASSES, DISCRETE, net, ours, parent, randn, sample

from dmkit.schedulers.epsilon_scaling import scale_epsilon

X = randn(2, 1, 4, 4, seed=5)


@given(st.floats(0.02, 0.999), st.floats(-0.5, 0.5))
def test_three_forms_of_one_prediction_stay_one(alpha, b):
    x, e = randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    sigma = (1 - alpha**2) ** 0.5
    alpha, sigma = torch.tensor(alpha, dtype=x.dtype), torch.tensor(sigma, dtype=x.dtype)
    x0, v = (x - sigma * e) / alpha, alpha * e - sigma * (x - sigma * e) / alpha
    scaled = e / (1 + b)
    x0_scaled = (x - sigma * scaled) / alpha
    for kind, output, expected in (
        ("epsilon", e, scaled),
        ("sample", x0, x0_scaled),
        ("v_prediction", v, alpha * scaled - sigma * x0_scaled),
    ):
        result = scale_epsilon(output, x, alpha, sigma, kind, b)
        torch.testing.assert_close(result, expected, atol=1e-8, rtol=1e-8)


def predicting(kind, alphas_cumprod, b=0.0):
    """`net` with its noise prediction divided by 1 + b, in one of the three forms."""

    def network(x, t):
        a = torch.lerp(alphas_cumprod[int(t)], alphas_cumprod[min(int(t) + 1, 999)], float(t) % 1)
        e = net(x, t) / (1 + b)
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        return {"epsilon": e, "sample": x0, "v_prediction": a.sqrt() * e - (1 - a).sqrt() * x0}[kind]

    return network


@pytest.mark.parametrize("window", [0, "auto"])
@pytest.mark.parametrize(
    ("name", "kind", "extra"),
    [(n, k, {}) for n in DISCRETE for k in ("epsilon", "sample", "v_prediction") if "PNDM" not in n]
    + [
        ("TimeShiftPNDMScheduler", k, {"skip_prk_steps": s})
        for k in ("epsilon", "v_prediction")
        for s in (0, 1)
    ],
)
def test_it_is_a_network_that_predicts_less_noise(name, kind, extra, window):
    """In every form of prediction, with and without Time-Shift."""

    def run(b_of_scheduler, b_of_network):
        scheduler = ours(
            name, **extra, prediction_type=kind, time_shift_window=window, epsilon_scaling=b_of_scheduler
        )
        network = predicting(kind, scheduler.alphas_cumprod.double(), b_of_network)
        generator = {"generator": torch.Generator().manual_seed(1)} if "DDPM" in name else {}
        return sample(scheduler, X, 10, network=network, **generator)

    torch.testing.assert_close(run(0.05, 0.0), run(0.0, 0.05), atol=1e-4, rtol=1e-4)
    assert (run(0.05, 0.0) - run(0.0, 0.0)).abs().max() > 1e-3


def test_a_learned_variance_is_left_alone():
    scheduler = ours("TimeShiftDDPMScheduler", variance_type="learned_range", epsilon_scaling=0.5)
    scheduler.set_timesteps(10)
    theirs = parent("TimeShiftDDPMScheduler", variance_type="learned_range")
    theirs.set_timesteps(10)
    e, variance = randn(2, 1, 4, 4, seed=3), randn(2, 1, 4, 4, seed=4)
    steps = [
        s.step(torch.cat([o, variance], 1), s.timesteps[0], X, generator=torch.Generator().manual_seed(0))
        for s, o in ((scheduler, e), (theirs, e / 1.5))
    ]
    assert steps[0].prev_sample.equal(steps[1].prev_sample)


def test_zero_leaves_the_output_untouched():
    scheduler = ours("TimeShiftDDIMScheduler", time_shift_window=0, epsilon_scaling=0.0)
    assert sample(scheduler, X, 10).equal(sample(parent("TimeShiftDDIMScheduler"), X, 10))


def test_continuous_classes_do_not_offer_it():
    for name in set(CLASSES) - set(DISCRETE):
        with pytest.raises(TypeError, match="epsilon_scaling"):
            ours(name, epsilon_scaling=0.01)
