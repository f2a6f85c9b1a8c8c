"""The exactly known denoiser that the Time-Shift experiments stand on, against independent computations."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

from dmkit.data.exact import ExactDenoiser, GaussianMixture
from dmkit.data.photos import load_photos, random_crops


def mixture(classes=None, count=5, shape=(2, 3, 3), bandwidth=0.3):
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(count, *shape, generator=g, dtype=torch.float64)
    return GaussianMixture(centres, bandwidth, torch.rand(count, generator=g) + 0.1, classes)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (1.0, 2.0), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_posterior_mean_is_tweedies_formula_on_the_marginal_density(alpha, sigma):
    """alpha E[x0|x] = x + sigma² grad log p(x), the density p taken from torch and differentiated."""
    mix = mixture()
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    spread = ((alpha * mix.bandwidth) ** 2 + sigma**2) ** 0.5
    components = torch.distributions.Independent(
        torch.distributions.Normal(alpha * mix.centres, torch.full_like(mix.centres, spread)), 1
    )
    weights = torch.distributions.Categorical(logits=mix.log_weights)
    density = torch.distributions.MixtureSameFamily(weights, components)
    (score,) = torch.autograd.grad(density.log_prob(x.flatten(1)).sum(), x)
    mean = mix.posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(alpha * mean, x + sigma**2 * score, atol=1e-9, rtol=1e-9)
    if not alpha:  # nothing is known about x0: its prior mean
        prior = mix.log_weights.exp() @ mix.centres
        torch.testing.assert_close(mean.flatten(1), prior.expand(4, -1))


def test_posterior_mean_is_the_best_guess_from_samples():
    """No other guess of a family around it has a lower mean squared error."""
    mix, g = mixture(), torch.Generator().manual_seed(2)
    x0 = mix.sample(20_000, g)
    x = 0.6 * x0 + 0.8 * torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    mean = mix.posterior_mean(x, 0.6, 0.8)
    errors = [((1 + d) * mean - x0).square().mean().item() for d in (-0.05, 0.0, 0.05)]
    assert errors[1] < min(errors[0], errors[2])


def test_classes_restrict_the_mixture_and_negative_means_any():
    classes = torch.tensor([0, 0, 1, 1, 1])
    mix = mixture(classes)
    only = GaussianMixture(
        mix.centres[:2].view(2, 2, 3, 3), 0.3, mix.log_weights[:2].exp() / mix.log_weights[:2].exp().sum()
    )
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    conditional = mix.posterior_mean(x, 0.6, 0.8, torch.tensor([0, -1, 0]))
    torch.testing.assert_close(conditional[[0, 2]], only.posterior_mean(x, 0.6, 0.8)[[0, 2]])
    torch.testing.assert_close(conditional[1], mix.posterior_mean(x, 0.6, 0.8)[1])
    with pytest.raises(ValueError, match="built without classes"):
        mixture().posterior_mean(x, 0.6, 0.8, torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="no component of class 7"):
        mix.posterior_mean(x, 0.6, 0.8, torch.tensor([0, 7, 0]))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_unet_face_predicts_what_it_says_at_vector_and_scalar_timesteps(kind):
    abar = DDIMScheduler().alphas_cumprod
    mix = mixture()
    model = ExactDenoiser(mix, abar, kind)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([5, 500, 990])
    out = model(x, t).sample
    for k in range(3):
        torch.testing.assert_close(out[k : k + 1], model(x[k : k + 1], t[k]).sample)
        a = abar[t[k]].double()
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
        x0 = mix.posterior_mean(x[k : k + 1], alpha, sigma)
        e = (x[k : k + 1] - alpha * x0) / sigma
        expected = {"epsilon": e, "sample": x0, "v_prediction": alpha * e - sigma * x0}[kind]
        torch.testing.assert_close(out[k : k + 1], expected, atol=1e-9, rtol=1e-9)
    halfway = model.alpha_bar(torch.tensor([5.5]))
    torch.testing.assert_close(halfway, (abar[5:7].double().mean())[None])
    assert model(x, 5, return_dict=False)[0].equal(model(x, torch.tensor(5)).sample)


def test_unmodified_pipeline_draws_the_mixture():
    """Two far, narrow components with weights 1 : 3 come out in that proportion, at their centres."""
    centres = torch.stack([torch.full((1, 4, 4), -0.6), torch.full((1, 4, 4), 0.6)])
    scheduler = DDIMScheduler(clip_sample=False)
    mix = GaussianMixture(centres, 0.05, torch.tensor([1.0, 3.0]))
    pipe = DDPMPipeline(ExactDenoiser(mix, scheduler.alphas_cumprod), scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(400, torch.Generator().manual_seed(0), num_inference_steps=50, output_type="np").images
    means = torch.from_numpy(images).mean((1, 2, 3)) * 2 - 1
    assert (means.abs() - 0.6).abs().max() < 0.15
    assert 0.68 < (means > 0).float().mean() < 0.82


def test_photos_are_average_pooled_and_crops_are_pieces_of_them():
    from sklearn.datasets import load_sample_images

    photos = load_photos(4)
    raw = torch.tensor(load_sample_images().images[1]).double()
    expected = raw[8:12, 12:16].mean((0, 1)) / 127.5 - 1
    torch.testing.assert_close(photos[1][:, 2, 3].double(), expected, atol=1e-6, rtol=0)
    crops, source = random_crops(40, torch.Generator().manual_seed(3), size=6)
    assert crops.shape == (40, 3, 6, 6)
    assert set(source.tolist()) == {0, 1}
    for crop, origin in zip(crops, source.tolist(), strict=True):
        windows = photos[origin].unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4)
        assert (windows == crop).flatten(2).all(-1).any()
    again, _ = random_crops(40, torch.Generator().manual_seed(3), size=6)
    assert again.equal(crops)


def test_errors_say_what_was_expected():
    centres = torch.zeros(3, 1, 4, 4)
    with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
        GaussianMixture(centres, 0)
    with pytest.raises(ValueError, match="centres must be floats of shape"):
        GaussianMixture(centres.long(), 0.1)
    with pytest.raises(ValueError, match="weights must be 3 positive numbers"):
        GaussianMixture(centres, 0.1, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="classes must be 3 integers"):
        GaussianMixture(centres, 0.1, classes=torch.zeros(3))
    with pytest.raises(ValueError, match="Did you mean 'v_prediction'"):
        ExactDenoiser(GaussianMixture(centres, 0.1), torch.ones(10), "v_predictio")
    with pytest.raises(ValueError, match="larger than the photographs"):
        random_crops(1, torch.Generator(), size=200)
    with pytest.raises(ValueError, match="pool must be at least 1"):
        load_photos(0)
