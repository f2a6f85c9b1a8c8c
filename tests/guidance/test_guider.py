"""The guider in Diffusers' modular pipelines."""

import diffusers
import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks

from dmkit.guidance import NASA, NegativeAwaySteer


@pytest.fixture(scope="module")
def modular(sdxl_parts):
    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    pipe = blocks.init_pipeline()
    pipe.update_components(
        **sdxl_parts, force_zeros_for_empty_prompt=False, guider=NegativeAwaySteer(scale=0.5)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, negative="dog", **options):
    return pipe(
        prompt="cat",
        negative_prompt=negative,
        num_inference_steps=3,
        height=16,
        width=16,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        output="images",
        **options,
    )


def test_it_is_nasa_of_the_plain_pipeline(modular, sdxl_pipe):
    before = modular.unet.attn_processors
    steered = latents(modular)
    nasa = NASA(sdxl_pipe, 0.5)
    options = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}
    expected = nasa("cat", "dog", generator=torch.Generator().manual_seed(0), **options).images
    assert torch.allclose(steered, expected, rtol=1e-4, atol=1e-3)
    plain = sdxl_pipe("cat", guidance_scale=1, generator=torch.Generator().manual_seed(0), **options).images
    assert (steered - plain).abs().max() > 0.1
    assert modular.unet.attn_processors == before


@pytest.fixture
def guider(modular):
    """Puts a guider into the pipeline for a test."""
    original = modular.guider

    def use(**options):
        modular.update_components(guider=NegativeAwaySteer(**options))
        return modular

    yield use
    modular.update_components(guider=original)


def test_scale_0_is_the_plain_pipeline(guider, sdxl_pipe):
    options = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}
    plain = sdxl_pipe("cat", guidance_scale=1, generator=torch.Generator().manual_seed(0), **options).images
    for mode in ("nasa", "nag"):
        assert torch.allclose(latents(guider(scale=0.0, mode=mode)), plain, rtol=1e-4, atol=1e-3)


def test_disabled_it_does_nothing(modular):
    guide = NegativeAwaySteer(scale=0.5, enabled=False)
    assert guide.num_conditions == 1
    (batch,) = guide.prepare_inputs({"prompt_embeds": (torch.ones(1, 2, 3), None)})
    assert batch.prompt_embeds.shape == (1, 2, 3)
    before = modular.unet.attn_processors
    guide.prepare_models(modular.unet)
    assert modular.unet.attn_processors == before
    guide.cleanup_models(modular.unet)
    guide.enable()
    assert guide.num_conditions == 2


def test_it_calls_the_denoiser_once_a_step_and_within_its_steps_only(guider):
    """Three steps, the second of them steered."""
    tokens = []
    pipe = guider(scale=0.5, start=0.34, stop=0.67)
    handle = pipe.unet.register_forward_pre_hook(
        lambda _, __, given: tokens.append(given["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    try:
        latents(pipe)
    finally:
        handle.remove()
    assert tokens == [16, 32, 16]


def test_a_missing_negative_prompt_and_lost_layers_are_errors(guider):
    guide = NegativeAwaySteer(scale=0.5)
    with pytest.raises(ValueError, match="no negative encoder_hidden_states to steer away from"):
        guide.prepare_inputs({"encoder_hidden_states": (torch.zeros(1, 2, 3), None)})
    pipe = guider(scale=0.5)
    before = pipe.unet.attn_processors
    with pytest.raises(RuntimeError, match="not steered any more"):
        _overwritten_meanwhile(pipe)
    assert all(pipe.unet.attn_processors[name] is before[name] for name in before if "attn2" in name)


def _overwritten_meanwhile(pipe):
    guide = pipe.guider
    guide.prepare_models(pipe.unet)
    pipe.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor2_0())
    guide.cleanup_models(pipe.unet)


def test_masks_and_the_fields_of_a_block_state(guider):
    guide = NegativeAwaySteer(scale=0.5)
    state = BlockState(
        text=torch.zeros(1, 2, 3),
        negative_text=torch.ones(1, 4, 3),
        mask=torch.ones(1, 2),
        negative_mask=torch.zeros(1, 4),
        size=torch.ones(1),
    )
    fields = {
        "encoder_hidden_states": ("text", "negative_text"),
        "encoder_attention_mask": ("mask", "negative_mask"),
        "size": "size",
        "absent": ("nowhere", "nowhere"),
    }
    (batch,) = guide.prepare_inputs_from_block_state(state, fields)
    assert batch.encoder_hidden_states.sum((0, 2)).tolist() == [0, 0, 3, 3, 3, 3]
    assert batch.encoder_attention_mask.tolist() == [[1, 1, 0, 0, 0, 0]]
    assert torch.equal(batch.size, state.size)
    assert guide.steering.sizes == (2, 4)
    batch.noise_pred = torch.rand(1, 4)
    assert torch.equal(guide([batch]).pred, batch.noise_pred)


def test_it_is_saved_and_loaded_by_its_config(tmp_path):
    NegativeAwaySteer(scale=3.0, mode="nag", tau=2.0, blend=0.5, stop=0.25).save_pretrained(tmp_path)
    assert (tmp_path / "guider_config.json").exists()
    loaded = NegativeAwaySteer.from_pretrained(tmp_path)
    assert (loaded.steering.mode, loaded.steering.scale, loaded.steering.tau) == ("nag", 3.0, 2.0)
    assert loaded.new(scale=1.0).steering.scale == 1.0
    assert loaded._stop == 0.25


def test_bad_values():
    with pytest.raises(ValueError, match=r"Unknown mode 'nga'\. Did you mean 'nag'"):
        NegativeAwaySteer(mode="nga")
    with pytest.raises(ValueError, match="`start` to be between"):
        NegativeAwaySteer(start=1.5)
