"""The community pipeline as a user loads it."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

from dmkit import zoo
from dmkit.adapters import SPM, save_spm

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from small_models import random_spm

FOLDERS = Path(__file__).parents[2] / "pipelines"


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(
        zoo.path("emoji"), custom_pipeline=str(FOLDERS / folder), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(call, prompts=("a red cat", "a house"), **arguments):
    generators = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    settings = {"num_inference_steps": 1, "output_type": "latent", **arguments}
    return call(list(prompts), generator=generators, **settings).images


@pytest.fixture(scope="module")
def pipe():
    return load("spm")


@pytest.fixture
def file(pipe, tmp_path):
    save_spm(random_spm(pipe.unet, targets=("cat",), size=0.1), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def test_it_is_spm_on_the_plain_pipeline(pipe, file):
    plain = StableDiffusionPipeline.from_pretrained(zoo.path("emoji"))
    plain.set_progress_bar_config(disable=True)
    base = latents(plain)
    assert torch.equal(latents(pipe), base)
    spm = SPM(plain)
    spm.load_spm_weights(file, "cat")
    pipe.load_spm_weights(file, "cat")
    assert torch.equal(latents(pipe), latents(spm))
    squared = {"permeability": "squared", "score": "clipcos"}
    assert torch.equal(latents(pipe, **squared), latents(spm, **squared))
    pipe.set_adapters("cat", 0.5)
    spm.set_adapters("cat", 0.5)
    without = {"facilitated_transport": False}
    assert torch.equal(latents(pipe, **without), latents(spm, **without))
    pipe.unload_spm_weights()
    assert torch.equal(latents(pipe), base)


def test_a_new_scheduler_is_used(pipe):
    kept, before = pipe.scheduler, latents(pipe)
    pipe.scheduler = DDIMScheduler.from_config(kept.config, timestep_spacing="trailing")
    try:
        assert not torch.equal(latents(pipe), before)
    finally:
        pipe.scheduler = kept


def test_pictures(pipe, file):
    pipe.load_spm_weights(file, "cat", targets=["dog"])
    (image,) = pipe("a dog", num_inference_steps=1).images
    assert image.size == (32, 32)
    pipe.delete_adapters("cat")
    assert not pipe.spm.metadata


def test_beside_another_community_pipeline(pipe, file):
    assert type(load("bdia_editing")).__name__ == "BDIAEditingPipeline"
    again = load("spm")
    assert type(again).__name__ == "SPMPipeline"
    again.load_spm_weights(file, "cat")
