import copy

import pytest
import torch
from small_models import random_spm, tiny_unet

from dmkit import zoo


@pytest.fixture(scope="session")
def emoji():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(zoo.path("emoji"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(emoji):
    """The shipped text-to-image pipeline with a denoiser of its own."""
    from diffusers import StableDiffusionPipeline

    parts = {**emoji.components, "unet": copy.deepcopy(emoji.unet)}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture
def predict():
    """A denoiser's output for a fixed input of `batch` samples."""

    def call(model, batch=2, **arguments):
        draws = torch.Generator().manual_seed(0)
        x = torch.randn(batch, model.config.in_channels, 8, 8, generator=draws)
        context = torch.randn(batch, 5, model.config.cross_attention_dim, generator=draws)
        with torch.no_grad():
            return model(x, torch.tensor(7), encoder_hidden_states=context, **arguments).sample

    return call


@pytest.fixture
def spm_file(tmp_path):
    """Writes a random SPM for a model; see `small_models.random_spm`."""
    from dmkit.adapters import save_spm

    def write(model, name="spm.safetensors", format="kohya", **options):
        save_spm(random_spm(model, **options), tmp_path / name, format)
        return tmp_path / name

    return write
