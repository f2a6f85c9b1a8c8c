"""Whole pipelines: what a user calls."""

import copy
import warnings

import diffusers
import peft
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from dmkit.guidance import NASA

pytestmark = pytest.mark.filterwarnings("ignore:Steering the joint attention")


@pytest.fixture(scope="module")
def t5():
    """A tokenizer and an untrained T5 encoder of a few hundred weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "cat", "dog", "sun", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(7)
    config = T5Config(vocab_size=7, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens), T5EncoderModel(config).eval()


@pytest.fixture(scope="module")
def pixart_pipe(pixart, t5, vae):
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=t5[0],
        text_encoder=t5[1],
        vae=vae,
        transformer=pixart,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def sd3_pipe(sd3, sdxl_parts, vae):
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(8)
    config = copy.deepcopy(sdxl_parts["text_encoder_2"].config)
    # Two CLIPs side by side: their pooled embeddings, and their tokens padded to the transformer's 12.
    config.hidden_size, config.projection_dim = 6, 5
    encoders = [CLIPTextModelWithProjection(config).eval() for _ in range(2)]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=sd3,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=sdxl_parts["tokenizer"],
        text_encoder_2=encoders[1],
        tokenizer_2=sdxl_parts["tokenizer"],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def flux_pipe(flux, t5, sdxl_parts, vae):
    from transformers import CLIPTextModel

    torch.manual_seed(9)
    config = copy.deepcopy(sdxl_parts["text_encoder"].config)
    config.hidden_size = 10
    pipe = diffusers.FluxPipeline(
        transformer=flux,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=sdxl_parts["tokenizer"],
        text_encoder_2=t5[1],
        tokenizer_2=t5[0],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPES = ("text_pipe", "sdxl_pipe", "pixart_pipe", "sd3_pipe", "flux_pipe")


@pytest.fixture(params=PIPES)
def pipe(request):
    return request.getfixturevalue(request.param)


def images(call, *args, seeds=(0,), **options):
    """Latents of 16x16 images in two steps, by a pipeline or by NASA."""
    defaults = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": 16,
        "width": 16,
        **lengths(getattr(call, "pipe", call)),
    }
    if isinstance(getattr(call, "pipe", call), diffusers.PixArtAlphaPipeline):
        defaults["use_resolution_binning"] = False
    return call(*args, **{**defaults, **options}).images


def lengths(pipe):
    """What keeps the texts of the larger pipelines short."""
    long = (diffusers.FluxPipeline, diffusers.StableDiffusion3Pipeline)
    return {"max_sequence_length": 16} if isinstance(pipe, long) else {}


def unguided(pipe):
    return {} if isinstance(pipe, diffusers.FluxPipeline) else {"guidance_scale": 1.0}


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_scale_0_is_the_plain_pipeline_and_more_is_not(pipe, mode):
    plain = images(pipe, "cat", **unguided(pipe))
    nasa = NASA(pipe, 0.0, mode=mode)
    assert torch.allclose(images(nasa, "cat", negative_prompt="dog"), plain, atol=1e-6)
    nasa.scale = 1.0
    assert (images(nasa, "cat", negative_prompt="dog") - plain).abs().max() > 1e-5


def test_the_three_lines_are_the_one(pipe):
    nasa = NASA(pipe, 0.5)
    with nasa.enabled():
        embeddings = nasa.encode("cat", "dog", **lengths(pipe))
        lines = images(pipe, **embeddings, **unguided(pipe))
    assert torch.equal(images(nasa, "cat", "dog"), lines)
    assert embeddings["prompt_embeds"].shape[0] == 1


def test_no_further_call_of_the_denoiser(pipe):
    calls = []
    model = getattr(pipe, "unet", None) or pipe.transformer
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        images(pipe, "cat", **unguided(pipe))
        plain = len(calls)
        images(NASA(pipe, 0.5), "cat", "dog")
    finally:
        handle.remove()
    assert len(calls) == 2 * plain


def test_each_prompt_of_a_batch_is_itself_alone(pipe):
    nasa = NASA(pipe, [0.4, 0.0, 1.0])
    together = images(nasa, ["cat", "dog", "cat"], ["sun", "sun", "dog"], seeds=(0, 1, 2))
    for row, (prompt, negative, scale) in enumerate(
        (("cat", "sun", 0.4), ("dog", "sun", 0.0), ("cat", "dog", 1.0))
    ):
        alone = images(NASA(pipe, scale), prompt, negative, seeds=(row,))
        assert (together[row] - alone[0]).abs().max() < 1e-5 * alone.abs().max()


def test_several_images_of_a_prompt(pipe):
    nasa = NASA(pipe, [0.4, 1.0])
    several = images(nasa, ["cat", "dog"], "sun", seeds=(0, 1, 2, 3), num_images_per_prompt=2)
    nasa.scale = torch.tensor([0.4, 0.4, 1.0, 1.0])
    listed = images(nasa, ["cat", "cat", "dog", "dog"], "sun", seeds=(0, 1, 2, 3))
    assert torch.allclose(several, listed, atol=1e-6)


def test_an_empty_negative_prompt_steers_nothing(text_pipe):
    nasa = NASA(text_pipe, 0.7)
    plain = images(text_pipe, "cat", guidance_scale=1.0)
    for negative in (None, "", " "):
        assert torch.equal(images(nasa, "cat", negative), plain)
        with nasa.enabled():
            assert torch.allclose(images(nasa, "cat", negative), plain, atol=1e-6)
    mixed = images(nasa, ["cat", "cat"], ["", "dog"], seeds=(0, 0))
    assert torch.allclose(mixed[0], plain[0], atol=1e-6)
    assert torch.allclose(mixed[1], images(nasa, "cat", "dog")[0], atol=1e-6)


def test_the_scale_can_change_between_calls_and_within_a_block(text_pipe):
    nasa = NASA(text_pipe, 0.2)
    expected = images(NASA(text_pipe, 0.9), "cat", "dog")
    with nasa.enabled():
        embeddings = nasa.encode("cat", "dog")
        nasa.scale = 0.9
        assert torch.equal(images(text_pipe, **embeddings, guidance_scale=1.0), expected)
    assert nasa.scale == 0.9


# With guidance


@pytest.mark.parametrize("name", ["text_pipe", "sdxl_pipe", "pixart_pipe", "sd3_pipe"])
def test_guidance_is_refused_unless_allowed_and_then_steers_one_half(name, request):
    pipe = request.getfixturevalue(name)
    with pytest.raises(ValueError, match=r"guidance_scale=3\.0 is classifier-free guidance.*allow_cfg=True"):
        images(NASA(pipe, 0.5), "cat", "dog", guidance_scale=3.0)
    plain = images(pipe, "cat", guidance_scale=3.0)
    nasa = NASA(pipe, 0.0, allow_cfg=True)
    assert torch.allclose(images(nasa, "cat", "dog", guidance_scale=3.0), plain, atol=1e-5)
    nasa.scale = 0.8
    assert (images(nasa, "cat", "dog", guidance_scale=3.0) - plain).abs().max() > 1e-5
    assert nasa.steering.scale.tolist() == pytest.approx([0, 0.8])


def test_guidance_by_accident_is_noticed(sdxl_pipe):
    """The pipeline would guide by itself, with embeddings that are not steered."""
    nasa = NASA(sdxl_pipe, 0.5)
    with nasa.enabled(), pytest.raises(ValueError, match="run the pipeline without guidance"):
        images(sdxl_pipe, **nasa.encode("cat", "dog"), guidance_scale=5.0)


def test_flux_has_no_guidance_of_this_kind(flux_pipe):
    nasa = NASA(flux_pipe, 0.5)
    images(nasa, "cat", "dog", guidance_scale=3.5)
    with pytest.raises(ValueError, match="FluxPipeline has no guidance"):
        nasa.encode("cat", "dog", guided=True)


def test_consistency_models_keep_their_guidance_scale(text_pipe):
    """There it is an input of the network."""
    config = {k: v for k, v in text_pipe.unet.config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    pipe = diffusers.LatentConsistencyModelPipeline(
        **{
            **text_pipe.components,
            "unet": diffusers.UNet2DConditionModel(**{**config, "time_cond_proj_dim": 8}).eval(),
            "scheduler": diffusers.LCMScheduler(),
        },
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    plain = images(pipe, "cat", guidance_scale=8.0)
    nasa = NASA(pipe, 0.0)
    assert torch.allclose(images(nasa, "cat", "dog", guidance_scale=8.0), plain, atol=1e-6)
    nasa.scale = 0.8
    assert (images(nasa, "cat", "dog", guidance_scale=8.0) - plain).abs().max() > 1e-5


# The texts


def test_settings_of_the_text_encoder_count_as_in_the_pipeline(sdxl_pipe):
    nasa = NASA(sdxl_pipe, 0.0)
    plain = images(sdxl_pipe, "cat", prompt_2="dog", clip_skip=1, guidance_scale=1.0)
    assert torch.allclose(images(nasa, "cat", "sun", prompt_2="dog", clip_skip=1), plain, atol=1e-6)
    assert (images(sdxl_pipe, "cat", guidance_scale=1.0) - plain).abs().max() > 1e-5
    same, other, both = (
        nasa.encode("cat", "sun", **texts)["prompt_embeds"].chunk(2, dim=1)
        for texts in ({}, {"negative_prompt_2": "dog"}, {"prompt_2": "a", "negative_prompt_2": "dog"})
    )
    assert torch.equal(other[0], same[0])
    assert not torch.equal(other[1], same[1])
    assert not torch.equal(both[0], same[0])
    assert torch.equal(both[1], other[1])


def test_masks_come_along(pixart_pipe):
    encoded = NASA(pixart_pipe, 0.5).encode("cat", "a dog")
    masks = encoded["prompt_attention_mask"].chunk(2, dim=1)
    assert [int(mask.sum()) for mask in masks] == [2, 3]  # words and the end
    assert encoded["prompt_embeds"].shape[1] == encoded["prompt_attention_mask"].shape[1]


def test_the_pooled_embedding_is_the_prompt_s(sdxl_pipe):
    nasa = NASA(sdxl_pipe, 0.5)
    a, b = nasa.encode("cat", "dog"), nasa.encode("cat", "sun")
    assert torch.equal(a["pooled_prompt_embeds"], b["pooled_prompt_embeds"])


def test_numbers_that_do_not_pair(text_pipe):
    nasa = NASA(text_pipe, [0.5, 0.6])
    with pytest.raises(ValueError, match="3 prompts and 2 negative prompts do not pair"):
        nasa(["a", "b", "c"], ["d", "e"])
    with pytest.raises(ValueError, match="2 scales and 3 prompts do not pair"):
        nasa(["a", "b", "c"], "d")
    with pytest.raises(TypeError, match=r"StableDiffusionPipeline\.encode_prompt has no argument 'prompt_2'"):
        nasa(["a", "b"], "d", prompt_2="c")


# Loud failures


def test_what_cannot_be_steered(tiny_pipeline, text_pipe):
    pipe = diffusers.DDPMPipeline.from_pretrained(tiny_pipeline)
    with pytest.raises(ValueError, match="UNet2DModel has no attention layer that reads text"):
        NASA(pipe, 0.5)
    with pytest.raises(ValueError, match="str has no denoiser that reads a prompt"):
        NASA("a pipeline", 0.5)
    with pytest.raises(ValueError, match="must be finite, not inf"):
        NASA(text_pipe, float("inf"))
    with pytest.raises(ValueError, match=r"Unknown mode 'nagg'\. Did you mean 'nag'"):
        NASA(text_pipe, 0.5, mode="nagg")
    with pytest.warns(UserWarning, match="adds the negative prompt"):
        NASA(text_pipe, -0.5)


def test_on_and_off(text_pipe):
    before = text_pipe.unet.attn_processors
    nasa = NASA(text_pipe, 0.5)
    with pytest.raises(RuntimeError, match="NASA is not on"):
        nasa.disable()
    nasa.enable()
    with pytest.raises(RuntimeError, match="NASA is on already"):
        nasa.enable()
    first = images(nasa, "cat", "dog")
    with pytest.raises(ValueError, match="16 tokens of text reached the denoiser"):
        images(text_pipe, "cat", guidance_scale=1.0)
    nasa.disable()
    assert text_pipe.unet.attn_processors == before
    assert torch.equal(images(nasa, "cat", "dog"), first)


def test_overwritten_layers_are_noticed_and_restored(text_pipe):
    pipe = copy.deepcopy(text_pipe)
    nasa = NASA(pipe, 0.5)
    with pytest.raises(RuntimeError, match="SlicedAttnProcessor"), nasa.enabled():
        pipe.enable_attention_slicing(1)
    assert not any("NASA" in type(p).__name__ for p in pipe.unet.attn_processors.values())
    nasa.enable()
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(RuntimeError, match="not steered any more"):
        images(nasa, "cat", "dog")
    with pytest.raises(RuntimeError, match="not steered any more"):
        nasa.disable()
    nasa.enable()
    nasa.disable()


def test_an_error_of_the_pipeline_comes_through_and_restores(text_pipe):
    before = text_pipe.unet.attn_processors
    nasa = NASA(text_pipe, 0.5)
    with pytest.raises(ValueError, match="divisible by 8"):
        images(nasa, "cat", "dog", height=13)
    assert text_pipe.unet.attn_processors == before


# With others


def test_under_a_lora_of_the_pipeline(text_pipe):
    pipe = copy.deepcopy(text_pipe)
    plain = images(NASA(pipe, 0.5), "cat", "dog")
    torch.manual_seed(0)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    nasa = NASA(pipe, 0.5)
    adapted = images(nasa, "cat", "dog")
    assert (adapted - plain).abs().max() > 1e-4
    half = images(nasa, "cat", "dog", cross_attention_kwargs={"scale": 0.5})
    assert 1e-5 < (half - plain).abs().max() < (adapted - plain).abs().max()
    assert torch.allclose(images(nasa, "cat", "dog", cross_attention_kwargs={"scale": 0.0}), plain, atol=1e-6)
    pipe.unet.delete_adapters("default")
    assert torch.allclose(images(nasa, "cat", "dog"), plain, atol=1e-6)


def test_a_controlnet_is_steered_too(text_pipe):
    """It reads the same tokens: unsteered, it would add the negative prompt."""
    torch.manual_seed(0)
    controlnet = diffusers.ControlNetModel.from_unet(
        text_pipe.unet, conditioning_embedding_out_channels=(16, 32)
    ).eval()
    for parameter in controlnet.controlnet_down_blocks.parameters():
        parameter.normal_(std=0.1)
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **text_pipe.components, controlnet=controlnet, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    sketch = torch.rand(1, 3, 16, 16)
    plain = images(pipe, "cat", image=sketch, guidance_scale=1.0)
    nasa = NASA(pipe, 0.0)
    assert torch.allclose(images(nasa, "cat", "dog", image=sketch), plain, atol=1e-6)
    with nasa.enabled():
        assert any("NASA" in type(p).__name__ for p in controlnet.attn_processors.values())


def test_through_a_compiled_denoiser(text_pipe):
    eager = images(NASA(text_pipe, 0.5), "cat", "dog")
    pipe = copy.copy(text_pipe)
    torch._dynamo.reset()
    pipe.unet = torch.compile(copy.deepcopy(text_pipe.unet), backend="eager")
    assert torch.allclose(images(NASA(pipe, 0.5), "cat", "dog"), eager, atol=1e-5)
    torch._dynamo.reset()


def test_nothing_is_printed_or_warned_of(text_pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images(NASA(text_pipe, 0.5), "cat", "dog")
