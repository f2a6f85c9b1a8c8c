"""SPMs on whole pipelines."""

import functools
import json

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from small_models import random_spm, tiny_pixart_pipe, tiny_sdxl_pipe

from dmkit.adapters import SPM, read_spm, save_spm
from dmkit.adapters.spm.files import HEADER_KEY

PROMPTS = ["a red cat", "a dog in a house", "a cat"]


def images(call, prompts, generator_seed=0, **arguments):
    """Latents of one step; row k depends on the seed of row k alone."""
    count = len(prompts) * arguments.get("num_images_per_prompt", 1)
    first = arguments.pop("first", 0)
    settings = {"num_inference_steps": 1, "guidance_scale": 4.0, "output_type": "latent", **arguments}
    generators = [torch.Generator().manual_seed(generator_seed + first + k) for k in range(count)]
    return call(list(prompts), generator=generators, **settings).images


@pytest.fixture
def spm(pipe):
    """An SPM with two adapters in the shipped pipeline."""
    spm = SPM(pipe)
    spm.load_spm_weights(random_spm(pipe.unet, seed=1, targets=("cat",), size=0.1), "cat")
    spm.load_spm_weights(random_spm(pipe.unet, seed=2, targets=("dog", "house"), size=0.1), "dog")
    return spm


def test_a_batch_of_prompts_equals_single_runs(spm):
    together = images(spm, PROMPTS, num_images_per_prompt=2, num_inference_steps=2)
    for p, prompt in enumerate(PROMPTS):
        alone = images(spm, [prompt], num_images_per_prompt=2, first=2 * p, num_inference_steps=2)
        off = (together[2 * p : 2 * p + 2] - alone).abs().max() / alone.abs().max()
        assert off < 1e-5


def test_transport_is_a_lora_at_the_weights_of_one_prompt(spm, pipe):
    gammas = spm.permeability(PROMPTS[0])
    transported = images(spm, PROMPTS[:1])
    squared = images(spm, PROMPTS[:1], permeability="squared")
    pipe.set_adapters(["cat", "dog"], [float(gammas["cat"]), float(gammas["dog"])])
    assert torch.allclose(images(pipe, PROMPTS[:1]), transported, atol=1e-4)
    spm.set_adapters(["cat", "dog"], [float(gammas["cat"]) ** 2, float(gammas["dog"]) ** 2])
    assert torch.allclose(images(spm, PROMPTS[:1], facilitated_transport=False), squared, atol=1e-4)


def test_permeability_of_words(spm):
    found = spm.permeability(PROMPTS)
    assert list(found) == ["cat", "dog"]
    assert found["cat"].shape == (3,)
    assert found["cat"][0] == found["cat"][2] == 1
    assert found["dog"][1] == 1
    assert 0 <= found["cat"][1] < 1
    assert torch.equal(spm.permeability("cat", score="tokenuni")["cat"], torch.ones(1))
    assert spm.permeability("cat", score="clipcos")["cat"] == pytest.approx(1, abs=1e-5)


def test_weights_multiply(spm):
    spm.set_adapters("cat", 2.0)
    twice = images(spm, ["a cat"])
    assert spm.pipe.get_active_adapters() == ["cat"]
    spm.set_adapters("cat")
    assert not torch.allclose(images(spm, ["a cat"]), twice, atol=1e-3)
    spm.set_adapters(["cat", "dog"], 0)
    zero = images(spm, ["a cat"])
    spm.unload_spm_weights()
    assert torch.equal(images(spm, ["a cat"]), zero)


def test_unloading_restores_to_the_bit(pipe):
    plain = images(pipe, PROMPTS)
    spm = SPM(pipe)
    spm.load_spm_weights(random_spm(pipe.unet), "one")
    spm.load_spm_weights(random_spm(pipe.unet, seed=1), "two")
    assert not torch.equal(images(spm, PROMPTS), plain)
    spm.delete_adapters("two")
    assert list(spm.metadata) == ["one"]
    spm.unload_spm_weights()
    assert not spm.metadata
    assert torch.equal(images(pipe, PROMPTS), plain)
    assert torch.equal(images(spm, PROMPTS), plain)
    assert not hasattr(pipe.unet, "peft_config")


def test_the_users_loras_are_never_gated(pipe):
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config, "style")
    pipe.set_adapters(["style"], [0.6])
    style = images(pipe, PROMPTS)
    spm = SPM(pipe)
    spm.load_spm_weights(random_spm(pipe.unet, targets=("cat",)), "cat")
    assert pipe.get_active_adapters() == ["style", "cat"]
    assert not torch.allclose(images(spm, PROMPTS), style, atol=1e-3)
    spm.set_adapters("cat", 0.0)
    assert torch.equal(images(spm, PROMPTS), style)
    spm.set_adapters([])
    assert pipe.get_active_adapters() == ["style"]
    spm.unload_spm_weights()
    assert pipe.get_active_adapters() == ["style"]
    assert torch.equal(images(pipe, PROMPTS), style)


def test_what_a_lora_switches_off_is_said(spm, pipe, caplog):
    on = images(spm, PROMPTS)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "style")
    state = get_peft_model_state_dict(pipe.unet, adapter_name="style")
    pipe.delete_adapters("style")
    spm.set_adapters(["cat", "dog"])
    pipe.load_lora_weights({f"unet.{key}": value for key, value in state.items()}, adapter_name="style")
    assert pipe.get_active_adapters() == ["style"]
    for transport in (True, False):
        caplog.clear()
        images(spm, PROMPTS, facilitated_transport=transport)
        assert "has switched it off: SPM cat, dog." in caplog.text
    spm.set_adapters(["cat", "dog"])
    caplog.clear()
    assert torch.equal(images(spm, PROMPTS), on)
    spm.set_adapters("cat")
    images(spm, PROMPTS)
    spm.fuse()
    images(spm, PROMPTS, facilitated_transport=False)
    assert "switched it off" not in caplog.text


def test_the_pipelines_own_methods_go_on_working(spm, pipe):
    assert pipe.get_list_adapters() == {"unet": ["cat", "dog"]}
    on = images(spm, PROMPTS)
    pipe.disable_lora()
    off = images(spm, PROMPTS)
    assert not torch.equal(off, on)
    pipe.enable_lora()
    assert torch.equal(images(spm, PROMPTS), on)
    pipe.delete_adapters("dog")
    assert list(spm.metadata) == ["cat"]
    pipe.unload_lora_weights()
    assert not spm.metadata
    assert torch.equal(images(spm, PROMPTS), off)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_fusing_is_the_adapters_and_is_taken_back_to_the_bit(spm, pipe):
    plain = {name: p.clone() for name, p in pipe.unet.named_parameters()}
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    pipe.set_adapters(["style", "cat", "dog"], [0.5, 1.0, 0.7])
    before = images(pipe, PROMPTS)
    spm.fuse()
    assert pipe.get_active_adapters() == ["style"]
    assert torch.allclose(images(pipe, PROMPTS), before, atol=1e-4)
    with pytest.raises(ValueError, match="fused into the weights, where no prompt can close them"):
        images(spm, PROMPTS)
    for call in (spm.fuse, lambda: spm.delete_adapters("cat")):
        with pytest.raises(ValueError, match="unfuse them first"):
            call()
    spm.unfuse()
    assert all(torch.equal(p, plain[name]) for name, p in pipe.unet.named_parameters() if name in plain)
    assert pipe.get_active_adapters() == ["style", "cat", "dog"]
    assert torch.equal(images(pipe, PROMPTS), before)
    spm.fuse()
    spm.unload_spm_weights()
    pipe.delete_adapters("style")
    state = pipe.unet.state_dict()
    assert all(torch.equal(state[n], p) for n, p in plain.items() if n in state)


def test_transport_refuses_spms_that_the_pipeline_has_fused(spm, pipe):
    pipe.fuse_lora(components=["unet"])
    with pytest.raises(ValueError, match="fused into the weights"):
        images(spm, PROMPTS)
    pipe.unfuse_lora(components=["unet"])
    images(spm, PROMPTS)


def test_fused_projections_are_refused_at_the_call(spm, pipe):
    pipe.fuse_qkv_projections(vae=False)
    for transport in (True, False):
        with pytest.raises(ValueError, match=r"QKV projections of .*attn1 are fused"):
            images(spm, PROMPTS, facilitated_transport=transport)


def test_saving_and_loading(spm, pipe, tmp_path):
    gammas, expected = spm.permeability(PROMPTS), images(spm, PROMPTS)
    for format in ("kohya", "peft"):
        paths = [spm.save_spm_weights(tmp_path / format, name, format) for name in ("cat", "dog")]
        assert [path.name for path in paths] == ["cat.safetensors", "dog.safetensors"]
        assert read_spm(paths[1]).metadata.targets == ("dog", "house")
        spm.unload_spm_weights()
        for path in paths:
            spm.load_spm_weights(path, path.stem)
        assert torch.equal(images(spm, PROMPTS), expected)
        again = spm.permeability(PROMPTS)
        assert all(torch.equal(again[name], gammas[name]) for name in gammas)


def test_state_dicts_and_files_without_metadata(pipe, tmp_path):
    save_spm(random_spm(pipe.unet), tmp_path / "bare.safetensors")
    spm = SPM(pipe)
    tensors = load_file(tmp_path / "bare.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors")
    spm.load_spm_weights(tmp_path / "bare.safetensors", "bare")
    with pytest.raises(ValueError, match=r"SPM 'bare' does not say what it erases.*targets="):
        images(spm, PROMPTS)
    images(spm, PROMPTS, facilitated_transport=False)
    spm.delete_adapters("bare")
    spm.load_spm_weights(tensors, "bare", targets=["cat"])
    images(spm, PROMPTS)
    assert spm.permeability("cat")["bare"] == 1


def test_one_text_pass_for_targets_and_one_for_prompts(pipe, monkeypatch):
    spm, batches = SPM(pipe), []
    encode = pipe.encode_prompt

    @functools.wraps(encode)
    def counted(prompt, **options):
        batches.append(prompt)
        return encode(prompt, **options)

    monkeypatch.setattr(pipe, "encode_prompt", counted)
    spm.load_spm_weights(random_spm(pipe.unet, targets=("cat", "dog")), "pets")
    spm.load_spm_weights(random_spm(pipe.unet, targets=("cow",)), "cow")
    assert batches == [["cat", "dog"], ["cow"]]
    with spm.transport(PROMPTS):
        assert batches[2:] == [PROMPTS]


def test_errors_leave_the_pipeline_as_it_was(pipe, spm_file, tmp_path):
    spm, plain = SPM(pipe), images(pipe, PROMPTS)
    good = spm_file(pipe.unet)
    tensors = load_file(good)
    first = next(key for key in tensors if key.endswith("lora_up.weight"))

    def changed(name, header=None, **updates):
        save_file({**tensors, **updates}, tmp_path / name, header)
        return tmp_path / name

    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:5000])
    torch.save(tensors, tmp_path / "pickled.safetensors")
    nan = {first: torch.full_like(tensors[first], float("nan"))}
    shape = {first: torch.ones(3, 1, 1, 1)}
    foreign = {first.replace("attentions_0", "attentions_7"): tensors[first].clone()}
    later = {HEADER_KEY: json.dumps({"format": 2})}
    for source, message in (
        (tmp_path / "none.safetensors", "missing"),
        (tmp_path / "x.ckpt", "pickled"),
        (tmp_path / "pickled.safetensors", "pickled"),
        (tmp_path / "cut.safetensors", "truncated"),
        (changed("nan.safetensors", **nan), f"{first} holds NaN"),
        (changed("shape.safetensors", **shape), f"{first.removesuffix('lora_up.weight')}.*has shape"),
        (changed("foreign.safetensors", **foreign), "lacks .*attentions_7"),
        (changed("later.safetensors", later), "has format 2"),
        ({}, "holds no adapter"),
        (random_spm(tiny_pixart_pipe().transformer), "another architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            spm.load_spm_weights(source, "bad")
    for name in ("../x", "a.b", "a/b", ""):
        with pytest.raises(ValueError, match="cannot be an adapter name"):
            spm.load_spm_weights(good, name)
    with pytest.raises(ValueError, match="A target is empty"):
        spm.load_spm_weights(good, "empty", targets=[""])
    with pytest.raises(TypeError, match="sequence of strings"):
        spm.load_spm_weights(good, "text", targets="cat")
    assert not spm.metadata
    assert not hasattr(pipe.unet, "peft_config")
    assert torch.equal(images(pipe, PROMPTS), plain)


def test_errors_of_calls(spm):
    expected = images(spm, PROMPTS)
    for call, message in (
        (lambda: spm.load_spm_weights(random_spm(spm.denoiser), "cat"), "There is an adapter 'cat' already"),
        (lambda: spm.set_adapters("cta"), "Unknown SPM 'cta'. Did you mean 'cat'"),
        (lambda: spm.set_adapters(["cat", "dog"], [1.0]), "2 adapters need as many weights, not 1"),
        (lambda: spm.set_adapters("cat", float("nan")), "should be finite"),
        (lambda: spm.delete_adapters("cow"), "Unknown SPM 'cow'"),
        (lambda: spm.save_spm_weights(".", "cow"), "Unknown SPM 'cow'"),
        (
            lambda: spm("a cat", permeability="square"),
            "Unknown permeability 'square'. Did you mean 'squared'",
        ),
        (lambda: spm("a cat", score="cos"), "Unknown score 'cos'"),
        (lambda: spm(prompt_embeds=torch.zeros(1, 77, 128)), "reads the prompt's text"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(images(spm, PROMPTS), expected)


def test_negative_prompts_are_the_pipelines(spm):
    fixed = {"latents": torch.ones(1, 4, 16, 16), "num_inference_steps": 1, "output_type": "latent"}
    one, same = (spm(prompt, negative_prompt=["a dog"], **fixed) for prompt in (["a cat"], ("a cat",)))
    assert torch.equal(one.images, same.images)
    for prompt, negative in ((["a cat", "a dog"], "red"), ("a cat", ["red"])):
        with pytest.raises(TypeError, match="same type to `prompt`"):
            spm(prompt, negative_prompt=negative)
    with pytest.raises(ValueError, match="has batch size 1"):
        spm(["a cat", "a dog"], negative_prompt=["red"])
    for prompt in (3, ["a cat", None]):
        with pytest.raises(TypeError, match="A prompt should be a text, or several a list of them, not"):
            spm(prompt)


def test_embeddings_without_transport(spm):
    embeddings, _ = spm.pipe.encode_prompt("a cat", "cpu", 1, False)
    found = spm(
        prompt_embeds=embeddings,
        negative_prompt_embeds=torch.zeros_like(embeddings),
        facilitated_transport=False,
        num_inference_steps=1,
        output_type="latent",
    )
    assert found.images.isfinite().all()


def test_a_pipeline_without_text_is_refused(tiny_pipeline):
    from diffusers import DDPMPipeline

    with pytest.raises(TypeError, match="DDPMPipeline lacks some of them"):
        SPM(DDPMPipeline.from_pretrained(tiny_pipeline))


def test_image_to_image(spm, pipe):
    other = SPM(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    other.pipe.set_progress_bar_config(disable=True)
    other.load_spm_weights(random_spm(pipe.unet, targets=("cow",)), "cow")
    picture = torch.rand(1, 3, 64, 64)
    run = {"image": picture, "strength": 1.0}
    both = images(other, ["a cow", "a cat"], **{**run, "image": picture.repeat(2, 1, 1, 1)})
    assert torch.allclose(both[:1], images(other, ["a cow"], **run), atol=1e-4)


@pytest.mark.parametrize("make", [tiny_sdxl_pipe, tiny_pixart_pipe])
def test_other_pipelines(make, tmp_path):
    pipe = make()
    size = {"height": 16, "width": 16}
    if make is tiny_pixart_pipe:
        size |= {"use_resolution_binning": False, "clean_caption": False}
    plain = images(pipe, PROMPTS, **size)
    spm = SPM(pipe)
    save_spm(random_spm(spm.denoiser, targets=("cat",)), tmp_path / "cat.safetensors")
    spm.load_spm_weights(tmp_path / "cat.safetensors", "cat")
    assert spm.permeability(PROMPTS)["cat"][2] == 1
    together = images(spm, PROMPTS, num_images_per_prompt=2, **size)
    assert not torch.allclose(together[::2], plain, atol=1e-3)
    for p, prompt in enumerate(PROMPTS):
        alone = images(spm, [prompt], num_images_per_prompt=2, first=2 * p, **size)
        assert torch.allclose(together[2 * p : 2 * p + 2], alone, atol=1e-5)
    spm.fuse()
    spm.unfuse()
    spm.unload_spm_weights()
    assert torch.equal(images(pipe, PROMPTS, **size), plain)


def test_an_spm_acts_once(spm, pipe):
    on = images(spm, PROMPTS[:1], facilitated_transport=False)
    with pytest.raises(ValueError, match="names one twice"):
        spm.set_adapters(["cat", "cat"])
    spm.fuse()
    with pytest.raises(ValueError, match="fused into the weights; unfuse first"):
        spm.set_adapters("cat")
    spm.unfuse()
    assert sorted(pipe.get_active_adapters()) == ["cat", "dog"]
    assert torch.allclose(images(spm, PROMPTS[:1], facilitated_transport=False), on, atol=1e-4)
    pipe.disable_lora()
    with pytest.raises(ValueError, match="switched off; enable them before fusing"):
        spm.fuse()


def test_one_transport_holds_no_other(spm):
    with (
        spm.transport(PROMPTS),
        pytest.raises(ValueError, match="one transport may not hold another"),
        spm.transport(PROMPTS),
    ):
        pass
    with spm.transport(PROMPTS):
        pass


def test_mixed_prompts_run_under_autocast(spm):
    with torch.autocast("cpu", torch.bfloat16):
        assert images(spm, PROMPTS).isfinite().all()


def test_loading_leaves_what_is_trained_alone(pipe):
    pipe.unet.requires_grad_(True)
    spm = SPM(pipe)
    spm.load_spm_weights(random_spm(pipe.unet, seed=1, targets=("cat",)), "cat")
    spm.unload_spm_weights()
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())


def test_transport_needs_a_prompt(spm):
    with pytest.raises(ValueError, match="at least one prompt"):
        spm.permeability([])
