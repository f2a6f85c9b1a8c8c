import json

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import pictures, step, tiny_vae

from dmkit.training.arguments import TrainingArguments
from dmkit.training.autoencoding import AutoencodingTask, scaling_factor
from dmkit.training.trainer import Trainer


@pytest.fixture
def images() -> torch.Tensor:
    return torch.stack([item["images"] for item in pictures(16).__getitems__(range(16))])


def task_of(vae, images, kl_weight=0.1) -> AutoencodingTask:
    return AutoencodingTask(vae, kl_weight=kl_weight, examples=images[:3], scaling_images=images)


@settings(max_examples=20, deadline=None)
@given(mean=st.floats(-3, 3), log_variance=st.floats(-4, 3))
def test_divergence_is_that_of_the_normal_distributions(mean, log_variance):
    """A posterior set by hand: KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² - 1 - ln σ²) for each latent number."""
    vae = tiny_vae()
    torch.nn.init.zeros_(vae.quant_conv.weight)
    with torch.no_grad():
        vae.quant_conv.bias[:4], vae.quant_conv.bias[4:] = mean, log_variance
    inputs = torch.zeros(2, 3, 8, 8)
    _, divergence = vae(inputs, torch.zeros(2, 4, 4, 4))
    log_variance = torch.tensor(log_variance)
    expected = (mean**2 + log_variance.exp() - 1 - log_variance) / 2
    torch.testing.assert_close(divergence, expected.expand(2), rtol=1e-4, atol=1e-5)
    # The losses are this divergence weighed, and the plain squared error of what was decoded.
    losses = task_of(vae, inputs).training_step({"images": inputs}, step())
    torch.testing.assert_close(losses["kl"], 0.1 * expected, rtol=1e-4, atol=1e-5)
    noise = step().draws.normal((2, 4, 4, 4))
    decoded = vae.decode(mean + (log_variance / 2).exp() * noise).sample
    torch.testing.assert_close(losses["reconstruction"], decoded.pow(2).mean(), rtol=1e-4, atol=1e-5)


def test_scaling_gives_latents_of_unit_variance(images):
    vae = tiny_vae()
    scaled = vae.encode(images).latent_dist.mean * scaling_factor(vae, images, batch_size=5)
    assert scaled.std().item() == pytest.approx(1, abs=1e-5)


def test_what_is_trained_loads_as_an_autoencoder_with_its_scaling(images, tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        train_batch_size=8,
        max_train_steps=3,
        lr_warmup_steps=0,
        learning_rate=1e-3,
        checkpointing_steps=3,
        save_images_epochs=1,
        report_to="none",
        use_ema=True,
    )
    trainer = Trainer(
        task_of(tiny_vae(), images),
        pictures(16),
        arguments,
        collate_fn=lambda items: {"images": torch.stack([item["images"] for item in items])},
    )
    trainer.train()
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    vae = AutoencoderKL.from_pretrained(tmp_path)
    assert vae.config.scaling_factor == pytest.approx(scaling_factor(vae, images))
    assert all(
        torch.equal(a, b) for a, b in zip(vae.parameters(), trainer.ema["vae"].shadow_params, strict=True)
    )
    assert not torch.equal(vae.decoder.conv_in.weight, tiny_vae().decoder.conv_in.weight)
    assert list((tmp_path / "samples").glob("*.png"))
