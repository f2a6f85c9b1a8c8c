"""Facilitated transport as a block of Diffusers' modular pipelines: assembled, run, saved, loaded."""

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from small_models import random_spm, tiny_sdxl_pipe

from dmkit.adapters import SPM, ModularSPM, TransportedDenoising

DENOISE = "denoise.denoise"
OPTIONS = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
PROMPTS = ["cat", "a red dog"]


@pytest.fixture(scope="module")
def plain():
    return tiny_sdxl_pipe()


def assembled():
    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    blocks.sub_blocks[DENOISE] = TransportedDenoising.around(blocks.sub_blocks[DENOISE])
    return blocks


@pytest.fixture
def pipe(plain):
    pipe = assembled().init_pipeline()
    parts = {name: part for name, part in plain.components.items() if name in pipe.component_names and part}
    pipe.update_components(
        **parts, force_zeros_for_empty_prompt=False, guider=ClassifierFreeGuidance(guidance_scale=4.0)
    )
    yield pipe
    if pipe.spm is not None:
        pipe.spm.unload_spm_weights()


def draws(count):
    return [torch.Generator().manual_seed(k) for k in range(count)]


def latents(pipe, prompts=PROMPTS, **options):
    return pipe(prompt=prompts, generator=draws(2), output="images", **OPTIONS, **options)


# Diffusers' blocks repeat the pooled embeddings of several prompts for several images in another order than
# the embeddings, so only one of both is more than one here.
@pytest.mark.parametrize(("prompts", "images"), [(PROMPTS, 1), (PROMPTS[1:], 2)])
def test_the_block_is_transport_of_the_plain_pipeline(pipe, plain, prompts, images):
    weights = random_spm(plain.unet, targets=("cat",))
    spm, count = ModularSPM(pipe), {"num_images_per_prompt": images}
    without = latents(pipe, prompts, **count)
    spm.load_spm_weights(weights, "cat")
    transported = latents(pipe, prompts, permeability="squared", **count)
    alike = latents(pipe, prompts, facilitated_transport=False, **count)
    gammas = spm.permeability(PROMPTS)["cat"]
    assert gammas[0] == 1
    assert 0 <= gammas[1] < 0.99
    spm.unload_spm_weights()
    assert torch.equal(latents(pipe, prompts, **count), without)

    reference = SPM(plain)
    reference.load_spm_weights(weights, "cat")
    call = {**OPTIONS, **count, "guidance_scale": 4.0, "negative_prompt": [""] * len(prompts)}
    expected = reference(prompts, generator=draws(2), permeability="squared", **call).images
    switched_off = reference(prompts, generator=draws(2), facilitated_transport=False, **call).images
    reference.unload_spm_weights()
    assert torch.allclose(transported, expected, rtol=1e-4, atol=1e-3)
    assert torch.allclose(alike, switched_off, rtol=1e-4, atol=1e-3)
    assert (transported - alike).abs().max() > 0.01


def test_gammas_are_in_the_state(pipe, plain):
    ModularSPM(pipe).load_spm_weights(random_spm(plain.unet, targets=("dog",)), "dog")
    state = pipe(prompt=PROMPTS, generator=draws(2), **OPTIONS)
    assert torch.equal(state.get("gammas")["dog"], pipe.spm.permeability(PROMPTS)["dog"])
    assert pipe(prompt="cat", output="gammas", facilitated_transport=False, **OPTIONS) == {}


def test_a_saved_pipeline_and_its_adapter_come_back(pipe, plain, tmp_path):
    spm = ModularSPM(pipe)
    spm.load_spm_weights(random_spm(plain.unet, targets=("cat",)), "cat")
    before = latents(pipe)
    path = spm.save_spm_weights(tmp_path, "cat")
    spm.unload_spm_weights()
    pipe.save_pretrained(str(tmp_path / "model"), overwrite_modular_index=True)
    loaded = assembled().init_pipeline(tmp_path / "model")
    loaded.load_components()
    loaded.update_components(guider=ClassifierFreeGuidance(guidance_scale=4.0))
    ModularSPM(loaded).load_spm_weights(path, "cat")
    assert torch.equal(latents(loaded), before)


def test_nothing_happens_silently(pipe, plain):
    with pytest.raises(ValueError, match=r"ModularSPM\(pipe\)\.load_spm_weights\(…\) comes first"):
        latents(pipe)
    with pytest.raises(TypeError, match="needs a modular pipeline, not StableDiffusionXLPipeline"):
        ModularSPM(plain)
    with pytest.raises(ValueError, match="put TransportedDenoising around its denoising block"):
        ModularSPM(StableDiffusionXLAutoBlocks().get_workflow("text2image").init_pipeline())
    with pytest.raises(TypeError, match="Expected a block"):
        TransportedDenoising.around(plain)
    spm = ModularSPM(pipe)
    with pytest.raises(TypeError, match="Call the modular pipeline itself"):
        spm("cat")
    spm.load_spm_weights(random_spm(plain.unet, targets=()), "nameless")
    with pytest.raises(ValueError, match="does not say what it erases"):
        latents(pipe)
