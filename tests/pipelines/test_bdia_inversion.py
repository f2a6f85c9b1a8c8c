"""The community pipeline, loaded as a user loads it: by folder, over saved models."""

from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

from dmkit.schedulers import BDIALatentPair

FOLDER = Path(__file__).parents[2] / "pipelines" / "bdia_inversion"


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("model")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(saved_model):
    pipe = DiffusionPipeline.from_pretrained(saved_model, custom_pipeline=str(FOLDER), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_reconstructs_a_saved_pixel_model(pipe, tmp_path):
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    out = pipe(image, num_inference_steps=10, output_type="pt")
    assert type(pipe).__name__ == "BDIAInversionPipeline"
    assert out.latent_error < 1e-12
    assert out.pixel_error < 1e-12
    assert torch.allclose(out.images, image / 2 + 0.5, atol=1e-6)
    out.pair.save_pretrained(tmp_path)
    assert torch.equal(BDIALatentPair.from_pretrained(tmp_path).z_T, out.pair.z_T)
    again = pipe(image, num_inference_steps=10, reversible="bitwise", output_type="pt")
    assert again.latent_error <= 2**-37  # the start is rounded to the grid once, and comes back exactly
    assert type(pipe.scheduler) is DDPMScheduler


def test_pictures_in_pictures_out(pipe):
    picture = PIL.Image.new("RGB", (8, 8), (250, 20, 120))
    out = pipe(picture, num_inference_steps=5)
    assert out.images[0].getpixel((3, 3)) == (250, 20, 120)
    assert out.pixel_error < 1e-12


def test_errors_reach_the_user(pipe):
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="is unconditional"):
        pipe(image, "a cat", num_inference_steps=5)
    with pytest.raises(ValueError, match="multiplies rounding errors"):
        pipe(image, gamma=0.5, num_inference_steps=20)
