"""Negative prompts without guidance: the community pipeline as a user loads it."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dmkit.guidance import NASA

FOLDER = Path(__file__).parents[2] / "pipelines" / "nasa"


@pytest.fixture(scope="module")
def pipe(text_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text_pipe.save_pretrained(folder)
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(FOLDER), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(call, *args, **options):
    generator = torch.Generator().manual_seed(0)
    return call(*args, num_inference_steps=2, generator=generator, output_type="pt", **options).images


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_it_is_nasa_of_diffusers_own_pipeline(pipe, text_pipe, mode):
    steered = images(pipe, "cat", "dog", nasa_scale=0.7, mode=mode)
    assert torch.allclose(steered, images(NASA(text_pipe, 0.7, mode=mode), "cat", "dog"), atol=1e-6)
    plain = images(text_pipe, "cat", guidance_scale=1.0)
    assert (steered - plain).abs().max() > 1e-5
    assert torch.allclose(images(pipe, "cat"), plain, atol=1e-6)
    assert not any("NASA" in type(p).__name__ for p in pipe.unet.attn_processors.values())


def test_with_guidance_on_top(pipe, text_pipe):
    guided = images(text_pipe, "cat", guidance_scale=4.0)
    unsteered = images(pipe, "cat", "dog", nasa_scale=0.0, guidance_scale=4.0)
    assert torch.allclose(unsteered, guided, atol=1e-5)


def test_bad_values_and_models(pipe, tiny_pipeline):
    with pytest.raises(ValueError, match=r"Unknown mode 'naza'\. Did you mean 'nasa'"):
        pipe("cat", "dog", mode="naza")
    with pytest.raises(ValueError, match="must be finite"):
        pipe("cat", "dog", nasa_scale=float("nan"))
    plain = DiffusionPipeline.from_pretrained(
        tiny_pipeline, custom_pipeline=str(FOLDER), trust_remote_code=True
    )
    with pytest.raises(ValueError, match="no attention layer that reads text"):
        plain("cat", "dog")
