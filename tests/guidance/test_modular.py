"""NASA as a block of Diffusers' modular pipelines: assembled, run, saved, loaded."""

import json

import pytest
import torch
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks

from dmkit.guidance import NASA, NegativeAwaySteer, SteeredDenoising

DENOISE = "denoise.denoise"


def assembled():
    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    blocks.sub_blocks[DENOISE] = SteeredDenoising.around(blocks.sub_blocks[DENOISE])
    return blocks


@pytest.fixture
def pipe(sdxl_parts):
    pipe = assembled().init_pipeline()
    pipe.update_components(
        **sdxl_parts, force_zeros_for_empty_prompt=False, guider=NegativeAwaySteer(scale=0.5)
    )
    return pipe


OPTIONS = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}


def latents(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt="cat", negative_prompt="dog", generator=generator, output="images", **OPTIONS)


def test_the_block_is_nasa_of_the_plain_pipeline(pipe, sdxl_pipe):
    nasa = NASA(sdxl_pipe, 0.5)
    expected = nasa("cat", "dog", generator=torch.Generator().manual_seed(0), **OPTIONS).images
    assert torch.allclose(latents(pipe), expected, rtol=1e-4, atol=1e-3)


def test_it_asks_for_what_the_block_inside_asks_for():
    inside = StableDiffusionXLAutoBlocks().get_workflow("text2image").sub_blocks[DENOISE]
    block = SteeredDenoising.around(inside)
    assert block.input_names == inside.input_names
    assert block.intermediate_output_names == inside.intermediate_output_names
    assert set(block.component_names) == set(inside.component_names)
    assert "NASA" in block.description
    specs = {spec.name: spec for spec in assembled().init_pipeline()._component_specs.values()}
    assert specs["guider"].type_hint is NegativeAwaySteer


def test_a_saved_pipeline_comes_back_with_its_guider(pipe, tmp_path):
    pipe.update_components(guider=NegativeAwaySteer(scale=3.0, mode="nag", stop=0.5))
    before = latents(pipe)
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    assert json.loads((tmp_path / "guider" / "guider_config.json").read_text())["scale"] == 3.0
    loaded = assembled().init_pipeline(tmp_path)
    loaded.load_components()
    assert isinstance(loaded.guider, NegativeAwaySteer)
    assert (loaded.guider.steering.mode, loaded.guider.steering.scale) == ("nag", 3.0)
    assert torch.allclose(latents(loaded), before, rtol=1e-5, atol=1e-4)


def test_what_cannot_be_steered_is_refused(pipe, sdxl_pipe):
    whole = StableDiffusionXLAutoBlocks()
    with pytest.raises(ValueError, match=r"may run a ControlNet.*get_workflow\('text2image'\)"):
        SteeredDenoising.around(whole.sub_blocks["denoise"])
    with pytest.raises(ValueError, match="has no guider"):
        SteeredDenoising.around(whole.get_workflow("text2image").sub_blocks["decode"])
    with pytest.raises(TypeError, match="Expected a block of Diffusers' modular pipelines, not StableDiff"):
        SteeredDenoising.around(sdxl_pipe)
    from diffusers import ClassifierFreeGuidance

    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    with pytest.raises(TypeError, match=r"guider is a ClassifierFreeGuidance; give pipe\.update_components"):
        latents(pipe)
