"""`invert`, `reconstruct`, `edit` and the pair's files, through unmodified pipelines."""

import json
import math
import subprocess
import sys

import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    UNet2DModel,
)
from tiny_flow import tiny_sd3_transformer

from dmkit.errors import FileFormatError
from dmkit.schedulers import BDIADDIMScheduler, BDIALatentPair, decode, edit, encode, invert, reconstruct
from dmkit.schedulers.bdia.recurrence import quantise


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(scope="module")
def pixel_pipe(unet):
    return quiet(DDPMPipeline(unet, DDPMScheduler()))


@pytest.fixture
def image():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture
def photo():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1


class Counter:
    def __init__(self, model):
        self.calls, self.handle = 0, model.register_forward_hook(self)

    def __call__(self, *_):
        self.calls += 1

    def take(self):
        calls, self.calls = self.calls, 0
        return calls


@pytest.fixture
def counter(unet):
    counter = Counter(unet)
    yield counter
    counter.handle.remove()


# The promise


@pytest.mark.parametrize(
    ("pipeline_class", "spacing", "num_steps"),
    [
        (DDPMPipeline, "leading", 7),
        (DDPMPipeline, "trailing", 10),
        (DDPMPipeline, "linspace", 50),
        (DDIMPipeline, "leading", 50),
        (DDIMPipeline, "trailing", 7),
        (DDIMPipeline, "linspace", 10),
    ],
)
def test_unconditional_pipeline_gives_the_image_back(
    unet, image, counter, pipeline_class, spacing, num_steps
):
    pipe = quiet(pipeline_class(unet, DDPMScheduler(timestep_spacing=spacing)))
    pair = invert(pipe, image, num_inference_steps=num_steps)
    assert counter.take() == num_steps
    back = reconstruct(pipe, pair)
    assert counter.take() == num_steps - 1
    assert torch.equal(back.image.float(), image)
    assert (back.latents - image).abs().max() < 1e-11


def test_the_pair_is_needed_and_ddim_inversion_is_not_exact(pixel_pipe, image, counter):
    pair = invert(pixel_pipe, image, num_inference_steps=20)
    alone = BDIALatentPair(**{**vars(pair), "z_T_prev": None})
    with pytest.raises(ValueError, match="lacks z_T_prev: z_T alone does not bring the image back"):
        reconstruct(pixel_pipe, alone)
    doubled = BDIALatentPair(**{**vars(pair), "z_T_prev": pair.z_T})
    assert (reconstruct(pixel_pipe, doubled).latents - image).abs().max() > 1e-2
    counter.take()
    ddim = invert(pixel_pipe, image, num_inference_steps=20, method="ddim")
    assert counter.take() == 20
    assert ddim.z_T_prev is None
    assert (reconstruct(pixel_pipe, ddim).latents - image).abs().max() > 1e-2
    assert counter.take() == 20


def test_edict_is_exact_too_at_twice_the_calls(pixel_pipe, image, counter):
    pair = invert(pixel_pipe, image, num_inference_steps=20, method="edict")
    assert counter.take() == 40
    assert (reconstruct(pixel_pipe, pair).latents - image).abs().max() < 1e-10
    assert counter.take() == 40


def test_bitwise_mode_with_a_half_precision_network(unet, image):
    pipe = quiet(DDPMPipeline(unet, DDPMScheduler())).to(torch.float16)
    try:
        pair = invert(pipe, image, num_inference_steps=20, reversible="bitwise")
        assert pair.model_dtype == "float16"
        assert torch.equal(reconstruct(pipe, pair).latents, image.double())
        flip = unet.register_forward_hook(_flip_one_bit_once())
        assert not torch.equal(reconstruct(pipe, pair).latents, image.double())
        flip.remove()
    finally:
        unet.float()


def _flip_one_bit_once():
    state = {"done": False}

    def hook(module, args, output):
        if not state["done"]:
            output.sample.view(torch.int16)[0, 0, 0, 0] ^= 1
            state["done"] = True

    return hook


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("options", [{"gamma": 1.0}, {"gamma": 0.94, "strength": 0.8}, {"method": "edict"}])
def test_text_to_image_pipeline_gives_the_latents_back(text_pipe, photo, guidance_scale, options):
    pair = invert(text_pipe, photo, "a cat", num_inference_steps=10, guidance_scale=guidance_scale, **options)
    assert len(pair.timesteps) == (8 if "strength" in options else 10)
    back = reconstruct(text_pipe, pair)
    z_0 = encode(text_pipe, photo)
    assert (back.latents - z_0).abs().max() < 1e-10
    # What is left in pixels is the autoencoder's own error.
    assert torch.allclose(back.image, decode(text_pipe, z_0), atol=1e-4)
    edited = edit(text_pipe, pair, "a dog", guidance_scale=5.0)
    assert (edited.latents - z_0).abs().max() > 1e-4
    assert edited.image.shape == photo.shape


def test_flow_matching_pipeline_gives_the_latents_back(photo):
    torch.manual_seed(5)
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=1.5,
        shift_factor=0.06,
    ).eval()
    transformer = tiny_sd3_transformer()
    parts = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    pipe = quiet(
        StableDiffusion3Pipeline(
            transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **parts
        )
    )
    generator = torch.Generator().manual_seed(6)
    conditions = {
        "prompt_embeds": torch.randn(2, 5, 16, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, 16, generator=generator),
        "height": 16,
        "width": 16,
    }
    pair = invert(pipe, photo, num_inference_steps=10, **conditions)
    back = reconstruct(pipe, pair, **conditions)
    assert (back.latents - encode(pipe, photo)).abs().max() < 1e-11
    exact = invert(pipe, photo, num_inference_steps=10, reversible="bitwise", **conditions)
    twice = [reconstruct(pipe, exact, **conditions).latents for _ in range(2)]
    assert torch.equal(*twice)
    assert torch.equal(twice[0], quantise(encode(pipe, photo).double()))
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    conditions["prompt_embeds"] = conditions["prompt_embeds"].flip(1) + 1
    assert (edit(pipe, pair, None, **conditions).latents - back.latents).abs().max() > 1e-5


def test_images_of_every_kind(pixel_pipe, image):
    pixels = ((image[:, 0] + 1) * 127.5).round().to(torch.uint8)
    pictures = [PIL.Image.fromarray(one.numpy()) for one in pixels]
    assert torch.equal(encode(pixel_pipe, pictures)[:, 0], pixels / 127.5 - 1)
    assert torch.equal(encode(pixel_pipe, pictures[0].convert("RGB")), encode(pixel_pipe, pictures)[:1])
    pair = invert(
        pixel_pipe, latents=image.double() * 3, num_inference_steps=5
    )  # latents may be of any range
    assert (reconstruct(pixel_pipe, pair).latents - image.double() * 3).abs().max() < 1e-11


# The pipeline is left as it was


def test_the_pipeline_its_scheduler_and_the_global_generator_are_left_alone(pixel_pipe, image):
    scheduler = pixel_pipe.scheduler
    pixel_pipe.unet.train()
    state = torch.get_rng_state()
    reconstruct(pixel_pipe, invert(pixel_pipe, image, num_inference_steps=5))
    assert pixel_pipe.scheduler is scheduler
    assert pixel_pipe.unet.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not pixel_pipe.unet._forward_pre_hooks
    pixel_pipe.unet.eval()


def test_after_an_error_as_well(pixel_pipe, image):
    scheduler = pixel_pipe.scheduler

    def fail(*_):
        raise OSError("disk on fire")

    handle = pixel_pipe.unet.register_forward_hook(fail)
    with pytest.raises(OSError, match="disk on fire"):
        invert(pixel_pipe, image, num_inference_steps=5)
    handle.remove()
    assert pixel_pipe.scheduler is scheduler
    assert not pixel_pipe.unet._forward_pre_hooks
    pair = invert(pixel_pipe, image, num_inference_steps=5)
    assert (reconstruct(pixel_pipe, pair).latents - image).abs().max() < 1e-11


def test_a_callback_that_edits_latents_is_noticed(text_pipe, photo):
    def nudge(pipe, step, t, kwargs):
        return {"latents": kwargs["latents"] + (0.1 if step == 2 else 0)}

    with pytest.raises(RuntimeError, match="Something changed the latents"):
        invert(text_pipe, photo, "cat", num_inference_steps=5, callback_on_step_end=nudge)


# Files


def test_pair_survives_saving(pixel_pipe, image, tmp_path):
    pair = invert(pixel_pipe, image, num_inference_steps=10, gamma=0.94, strength=0.8)
    pair.save_pretrained(tmp_path / "pair")
    again = BDIALatentPair.from_pretrained(tmp_path / "pair")
    assert sorted(p.name for p in (tmp_path / "pair").iterdir()) == ["pair.json", "pair.safetensors"]
    for name, value in vars(pair).items():
        other = getattr(again, name)
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name
    assert torch.equal(reconstruct(pixel_pipe, again).latents, reconstruct(pixel_pipe, pair).latents)
    assert json.loads((tmp_path / "pair" / "pair.json").read_text())["format"] == "dmkit.bdia_latent_pair"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: (d / "pair.json").unlink(), "pair.json does not exist"),
        (lambda d: (d / "pair.json").write_text('{"format": "dm'), "truncated or not JSON"),
        (lambda d: (d / "pair.json").write_text('{"_class_name": "DDIMScheduler"}'), "is not a latent pair"),
        (lambda d: _edit_json(d, version=2), "format version 2; this release reads 1"),
        (lambda d: _edit_json(d, gama=1.0), "lacks or adds entries"),
        (
            lambda d: (d / "pair.safetensors").write_bytes((d / "pair.safetensors").read_bytes()[:-9]),
            "truncated or not safetensors",
        ),
        (lambda d: _flip_byte(d / "pair.safetensors"), "is not the file that"),
    ],
)
def test_foreign_and_damaged_files_are_refused(pixel_pipe, image, tmp_path, damage, text):
    invert(pixel_pipe, image, num_inference_steps=5).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(FileFormatError, match=text):
        BDIALatentPair.from_pretrained(tmp_path)


def _edit_json(folder, **changes):
    facts = json.loads((folder / "pair.json").read_text())
    (folder / "pair.json").write_text(json.dumps({**facts, **changes}))


def _flip_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_failed_write_leaves_the_old_file(pixel_pipe, image, tmp_path, monkeypatch):
    pair = invert(pixel_pipe, image, num_inference_steps=5)
    pair.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(tensors, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        pair.save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_saved_pipeline_finds_its_scheduler_again(text_pipe, tmp_path):
    own = text_pipe.scheduler
    text_pipe.scheduler = BDIADDIMScheduler.from_config(own.config, gamma=0.5)
    text_pipe.save_pretrained(tmp_path)
    text_pipe.scheduler = own
    code = (
        "import dmkit; from diffusers import DiffusionPipeline; "
        f"scheduler = DiffusionPipeline.from_pretrained({str(tmp_path)!r}).scheduler; "
        "print(type(scheduler).__name__, scheduler.config.gamma)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["BDIADDIMScheduler", "0.5"]


# Errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_inference_steps": 1}, "num_inference_steps must be at least 2"),
        ({"strength": 0.0}, r"strength must lie in \(0, 1\]"),
        ({"strength": 0.05}, r"covers 1 level\(s\), fewer than 2"),
        ({"gamma": 0.5}, "multiplies rounding errors by 1e.06"),
        ({"gamma": 0.0}, "gamma is 0"),
        ({"gamma": 2.0}, "gamma must lie in"),
        ({"method": "null-text"}, "Unknown method 'null-text'"),
        ({"method": "edict", "reversible": "bitwise"}, "reversible='bitwise' is BDIA's"),
        ({"prompt": "a cat"}, "DDPMPipeline is unconditional"),
        ({"guidance_scale": 3.0}, r"DDPMPipeline takes no guidance_scale, got 3\.0"),
        ({"eta": 0.3}, "eta must be 0"),
    ],
)
def test_bad_arguments_say_what_is_wrong(unet, pixel_pipe, image, options, text):
    pipe = quiet(DDIMPipeline(unet, DDPMScheduler())) if "eta" in options else pixel_pipe
    with pytest.raises(ValueError, match=text):
        invert(pipe, image, **{"num_inference_steps": 20, **options})


def test_bad_images_say_what_is_wrong(pixel_pipe, text_pipe, image):
    cases = [
        (image * math.nan, "NaN"),
        (image * 255, r"image must lie in \[-1, 1\], got \[-25"),
        (image[:0], r"image must be \[B, 1, H, W\], got \(0, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), r"image must be \[B, 1, H, W\], got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 16, 16), r"works on \(2, 1, 8, 8\), got \(2, 1, 16, 16\)"),
        (None, "either image or latents"),
    ]
    for bad, text in cases:
        with pytest.raises(ValueError, match=text):
            invert(pixel_pipe, bad, num_inference_steps=5)
    with pytest.raises(TypeError, match="tensor or PIL images, got str"):
        invert(pixel_pipe, "cat.png", num_inference_steps=5)
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        invert(text_pipe, torch.zeros(2, 3, 16, 16), ["a", "b", "c"], num_inference_steps=5)


def test_a_network_that_returns_nan_is_noticed(pixel_pipe, image):
    def poison(module, args, output):
        output.sample.fill_(math.nan)

    handle = pixel_pipe.unet.register_forward_hook(poison)
    with pytest.raises(ValueError, match="network returned NaN"):
        invert(pixel_pipe, image, num_inference_steps=5)
    handle.remove()


def test_foreign_pairs_are_refused(pixel_pipe, unet, image):
    pair = invert(pixel_pipe, image, num_inference_steps=10)
    other_schedule = quiet(DDPMPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2")))
    with pytest.raises(ValueError, match="made with beta_schedule='linear'"):
        reconstruct(other_schedule, pair)
    with pytest.raises(ValueError, match="start states belong to timesteps"):
        reconstruct(pixel_pipe, BDIALatentPair(**{**vars(pair), "num_inference_steps": 12}))
    with pytest.raises(ValueError, match="holds NaN"):
        reconstruct(pixel_pipe, BDIALatentPair(**{**vars(pair), "z_T": pair.z_T * math.nan}))
    with pytest.raises(ValueError, match="The pair lacks z_T_prev"):
        reconstruct(pixel_pipe, BDIALatentPair(**{**vars(pair), "z_T_prev": None}))
    with torch.no_grad():
        unet.conv_in.bias.add_(1.0)
    with pytest.raises(ValueError, match="made with model"):
        reconstruct(pixel_pipe, pair)
    with pytest.warns(UserWarning, match="another model"):
        edit(pixel_pipe, pair, None)
    with torch.no_grad():
        unet.conv_in.bias.sub_(1.0)
    unet.half()
    with pytest.warns(UserWarning, match="made in float32, the model is in float16"):
        reconstruct(pixel_pipe, pair)
    unet.float()


def test_other_guidance_is_warned_about(text_pipe, photo):
    pair = invert(text_pipe, photo, "cat", num_inference_steps=3)
    with pytest.warns(UserWarning, match="not a reconstruction"):
        edit(text_pipe, pair, "cat", guidance_scale=4.0)


def test_schedulers_that_cannot_be_inverted_are_refused(unet, image):
    pipe = quiet(DDPMPipeline(unet, DDPMScheduler()))
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="EDMEulerScheduler cannot be inverted"):
        invert(pipe, image, num_inference_steps=5)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="method='edict' is not defined for flow"):
        invert(pipe, image, num_inference_steps=5, method="edict")
    pipe.scheduler = DDIMScheduler(prediction_type="v")
    with pytest.raises(ValueError, match="Unknown prediction_type 'v'"):
        invert(pipe, image, num_inference_steps=5)
