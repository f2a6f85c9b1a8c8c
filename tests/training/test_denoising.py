import pytest
import torch
from diffusers import DDPMScheduler

from dmkit.training.denoising import loss_weights, prediction_target

BETAS = DDPMScheduler(num_train_timesteps=1000).alphas_cumprod


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_weights_mean_the_same_error_in_x0(snr_gamma):
    """Dividing by each target's own scale, all types weigh the same x_0 error (Hang et al. 2023)."""
    snr = BETAS.double() / (1 - BETAS.double())
    in_x0 = loss_weights(BETAS, "sample", snr_gamma).double()
    torch.testing.assert_close(
        in_x0, loss_weights(BETAS, "epsilon", snr_gamma).double() * snr, rtol=1e-5, atol=0
    )
    if snr_gamma is not None:
        as_v = loss_weights(BETAS, "v_prediction", snr_gamma).double() * (snr + 1)
        torch.testing.assert_close(in_x0, as_v, rtol=1e-5, atol=0)
        assert in_x0.max() <= snr_gamma * (1 + 1e-6)


def test_plain_epsilon_and_v_are_unweighted():
    for kind in ("epsilon", "v_prediction"):
        torch.testing.assert_close(loss_weights(BETAS, kind, None), torch.ones(1000))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_prediction_gives_back_the_image(kind):
    scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 1, 8, 8, generator=generator)
    t = torch.tensor([5, 300, 600, 990])
    noisy = scheduler.add_noise(x0, noise, t)
    target = prediction_target(scheduler, x0, noise, t)
    for i in range(4):
        step = scheduler.step(target[i : i + 1], int(t[i]), noisy[i : i + 1], generator=generator)
        torch.testing.assert_close(step.pred_original_sample, x0[i : i + 1], atol=2e-3, rtol=1e-3)
