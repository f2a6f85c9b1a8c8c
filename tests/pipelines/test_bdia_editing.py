"""Editing by exact inversion: the community pipeline as a user loads it, and the functions behind it."""

import warnings
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmkit.schedulers import (
    BDIADDIMScheduler,
    BDIALatentPair,
    decode,
    difference_mask,
    edit,
    edit_image,
    encode,
    invert,
    reconstruct,
)
from dmkit.schedulers.bdia.editing import latent_mask, retrace
from dmkit.schedulers.bdia.inversion import run_back

FOLDER = Path(__file__).parents[2] / "pipelines" / "bdia_editing"


@pytest.fixture
def photo():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.fixture
def left():
    """A mask of the image's size: the left half may change."""
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    return mask


@pytest.fixture(scope="module")
def saved_model(text_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(saved_model):
    pipe = DiffusionPipeline.from_pretrained(saved_model, custom_pipeline=str(FOLDER), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The promise


@pytest.mark.parametrize("method", ["bdia", "edict"])
def test_equal_prompts_give_the_image_back_and_others_do_not(text_pipe, photo, method):
    z_0 = encode(text_pipe, photo)
    done = edit_image(text_pipe, photo, "cat", "cat", num_inference_steps=10, method=method)
    assert (done.edit.latents - z_0).abs().max() < 1e-9
    assert torch.allclose(done.edit.image, decode(text_pipe, z_0), atol=1e-4)
    other = edit_image(text_pipe, photo, "cat", "dog", num_inference_steps=10, method=method)
    assert (other.reconstruction.latents - z_0).abs().max() < 1e-9
    assert (other.edit.latents - z_0).abs().max() > 1e-3


def test_the_ddim_baseline_does_not_give_the_image_back(text_pipe, photo):
    done = edit_image(text_pipe, photo, "cat", "cat", num_inference_steps=10, method="ddim")
    assert (done.edit.latents - encode(text_pipe, photo)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["bdia", "edict"])
def test_outside_the_mask_the_source_comes_back_to_the_bit(text_pipe, photo, left, method):
    done = edit_image(text_pipe, photo, "cat", "dog", num_inference_steps=10, mask=left, method=method)
    difference = (done.edit.latents - done.reconstruction.latents).abs()
    assert difference[..., 4:].max() == 0
    assert difference[..., :4].max() > 1e-4
    # Freely edited, the same place would have changed.
    free = edit_image(text_pipe, photo, "cat", "dog", num_inference_steps=10, method=method)
    assert (free.edit.latents - done.reconstruction.latents)[..., 4:].abs().max() > 1e-4


@given(
    steps=st.integers(3, 12),
    gamma=st.floats(0.92, 1.0),
    strength=st.floats(0.7, 1.0),
    guidance=st.floats(0.0, 7.0),
    bitwise=st.booleans(),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mask_of_zeros_gives_the_image_back_under_any_prompt(
    text_pipe, photo, steps, gamma, strength, guidance, bitwise
):
    exact = {"reversible": "bitwise"} if bitwise else {"gamma": gamma}
    pair = invert(
        text_pipe,
        photo,
        "cat",
        num_inference_steps=steps,
        guidance_scale=guidance,
        strength=strength,
        **exact,
    )
    edited = edit(text_pipe, pair, "dog", guidance_scale=5.0, mask=torch.zeros(8, 8))
    assert (edited.latents - encode(text_pipe, photo)).abs().max() < 1e-8


def test_a_mask_of_ones_changes_nothing_of_the_edit(text_pipe, photo):
    pair = invert(text_pipe, photo, "cat", num_inference_steps=6)
    free = edit(text_pipe, pair, "dog", guidance_scale=4.0)
    masked = edit(text_pipe, pair, "dog", guidance_scale=4.0, mask=torch.ones(8, 8))
    assert (free.latents - masked.latents).abs().max() < 1e-5
    half = edit(text_pipe, pair, "dog", guidance_scale=4.0, mask=torch.full((8, 8), 0.5))
    z_0 = encode(text_pipe, photo)
    assert 1e-5 < (half.latents - z_0).abs().mean() < (free.latents - z_0).abs().mean()


@pytest.mark.parametrize("gamma", [0.85, 1.0])
def test_a_shifted_start_leaves_no_oscillation(text_pipe, photo, gamma, monkeypatch):
    """Where the noise depends on the prompt alone, DDIM's way down from z_N solves the recurrence."""

    def constant(sample, timestep, encoder_hidden_states, **_):
        e = encoder_hidden_states[:, 1, :8].sum(1)[:, None, None, None]
        return (torch.linspace(-1, 1, sample[0].numel()).view_as(sample[0]) * e,)

    monkeypatch.setattr(text_pipe.unet, "forward", constant)
    pair = invert(text_pipe, photo, "cat", num_inference_steps=8, gamma=gamma)
    down = DDIMScheduler.from_config(pair.scheduler_config)
    down.set_timesteps(8)
    with torch.no_grad():
        embeds = text_pipe.encode_prompt(["dog"] * 2, "cpu", 1, True, [""] * 2)
    guided = [constant(pair.z_T, None, embed)[0].double() for embed in embeds]
    ideal = pair.z_T
    for t in pair.timesteps:
        ideal = down.step(guided[1] + 5.0 * (guided[0] - guided[1]), t, ideal).prev_sample
    shifted = edit(text_pipe, pair, "dog", guidance_scale=5.0)
    plain = edit(text_pipe, pair, "dog", guidance_scale=5.0, shift_start=False)
    size = (ideal - encode(text_pipe, photo)).abs().max()
    assert (shifted.latents - ideal).abs().max() < 1e-5 * size
    assert (plain.latents - ideal).abs().max() > 0.01 * size


def test_one_prompt_needs_no_shift(text_pipe, photo):
    pair = invert(text_pipe, photo, "cat", num_inference_steps=6, guidance_scale=3.0, reversible="bitwise")
    assert torch.equal(edit(text_pipe, pair, "cat").latents, reconstruct(text_pipe, pair).latents)


def test_a_pair_from_disk_is_as_exact(text_pipe, photo, tmp_path):
    """The autoencoder's latents lie in another memory layout than a file's; kernels round otherwise there."""
    z_0 = encode(text_pipe, photo).contiguous(memory_format=torch.channels_last)
    pair = invert(text_pipe, None, "cat", latents=z_0, num_inference_steps=10, guidance_scale=3.0)
    pair.save_pretrained(tmp_path)
    from_disk = BDIALatentPair.from_pretrained(tmp_path)
    assert torch.equal(reconstruct(text_pipe, from_disk).latents, reconstruct(text_pipe, pair).latents)
    assert (reconstruct(text_pipe, from_disk).latents - z_0).abs().max() < 1e-9


# The mask from the prompts


@contextmanager
def answering(pipe, answer):
    """The pipeline with a denoiser that says `answer(sample, encoder_hidden_states)`."""

    def replace(_, args, kwargs, __):
        return (answer(args[0], kwargs["encoder_hidden_states"]),)

    handle = pipe.unet.register_forward_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _read_prompt_on_the_left(sample, text):
    out = torch.tanh(sample) * 0.5
    out[..., :3] += text.square().mean((1, 2))[:, None, None, None] * text[:, 1, :4, None, None]
    return out


@pytest.mark.parametrize("method", ["bdia", "edict", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_mask_is_where_the_prompts_differ(text_pipe, photo, method, guidance):
    with answering(text_pipe, _read_prompt_on_the_left):
        pair = invert(text_pipe, photo, "cat", num_inference_steps=6, method=method, guidance_scale=guidance)
        mask = difference_mask(text_pipe, pair, "dog")
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    expected[..., :3] = 1
    assert torch.equal(mask, expected)


def test_equal_prompts_have_no_difference_and_a_higher_threshold_masks_less(text_pipe, photo):
    pair = invert(text_pipe, photo, "cat", num_inference_steps=6)
    assert difference_mask(text_pipe, pair, "cat").max() == 0
    areas = [difference_mask(text_pipe, pair, "dog", threshold=t).mean().item() for t in (0, 1, 2)]
    assert 1 == areas[0] > areas[1] > areas[2]


def test_a_step_off_the_track_is_the_formula_s_multiple_of_the_difference(text_pipe, photo):
    """Two answers that differ by 1/4 everywhere: z - s = (b_{i-1} - gamma b_{i+1}) / 4 after each call."""
    with answering(text_pipe, lambda sample, _: torch.zeros_like(sample)):
        pair = invert(text_pipe, photo, "cat", num_inference_steps=5, gamma=0.95)
        source = retrace(text_pipe, pair)
    moved = []

    def held(step, states):
        moved.append(states[0] - source[step][0])
        return source[step]

    with answering(text_pipe, lambda sample, _: torch.full_like(sample, 0.25)):
        run_back(text_pipe, pair, "cat", 1.0, {}, held)
    sampler = BDIADDIMScheduler.from_config(pair.scheduler_config)
    sampler.set_timesteps(5)
    alpha_bar = sampler.alphas_cumprod[sampler.timesteps.flip(0)].double().tolist()
    levels = [(a**0.5, (1 - a) ** 0.5) for a in (float(sampler.final_alpha_cumprod), *alpha_bar)]
    assert len(moved) == 4
    for i, step in zip((4, 3, 2, 1), moved, strict=True):
        alpha, sigma = levels[i]
        b_below, b_above = (levels[j][1] - sigma * levels[j][0] / alpha for j in (i - 1, i + 1))
        assert torch.allclose(step, torch.full_like(step, (b_below - 0.95 * b_above) / 4), atol=1e-9)


# Masks from outside


def test_masks_of_every_kind(photo):
    latents = torch.zeros(2, 4, 8, 8)
    pixel = torch.zeros(16, 16)
    pixel[5, 9] = 0.5
    expected = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    expected[..., 2, 4] = 0.5  # the cell takes the largest of its pixels
    for given_mask in (pixel, pixel[None], pixel[None, None]):
        assert torch.equal(latent_mask(given_mask, latents), expected)
    picture = PIL.Image.new("L", (16, 16))
    picture.putpixel((9, 5), 255)
    assert torch.equal(latent_mask(picture, latents), (expected > 0).double())
    assert latent_mask([picture, picture], latents).shape == (2, 1, 8, 8)
    assert torch.equal(latent_mask(torch.ones(8, 8, dtype=torch.bool), latents), torch.ones_like(expected))


@pytest.mark.parametrize(
    ("mask", "error", "said"),
    [
        (
            torch.zeros(12, 12),
            ValueError,
            r"image's height and width or the latents' \(8, 8\), got \(12, 12\)",
        ),
        (torch.zeros(16, 32), ValueError, "image's height and width"),
        (torch.zeros(3, 16, 16), ValueError, r"with B = 2, got \(3, 16, 16\)"),
        (torch.full((8, 8), 2.0), ValueError, r"must lie in \[0, 1\], got \[2, 2\]"),
        (torch.full((8, 8), float("nan")), ValueError, r"must lie in \[0, 1\]"),
        (["left"], TypeError, "tensor or PIL images"),
        ([], TypeError, "tensor or PIL images, got list"),
        (3, TypeError, "tensor or PIL images, got int"),
    ],
)
def test_masks_that_are_refused(mask, error, said):
    with pytest.raises(error, match=said):
        latent_mask(mask, torch.zeros(2, 4, 8, 8))


def test_an_unknown_word_for_the_mask_and_packed_latents_are_refused(text_pipe, photo):
    with pytest.raises(ValueError, match=r"Unknown mask 'aut'\. Did you mean 'auto'"):
        edit_image(text_pipe, photo, "cat", "dog", mask="aut")
    with pytest.raises(ValueError, match=r"latents \[B, C, H, W\]"):
        latent_mask(torch.zeros(8, 8), torch.zeros(2, 64, 16))


# The community pipeline


def test_edits_and_reconstructs_a_saved_model(pipe, photo, left, tmp_path):
    assert type(pipe).__name__ == "BDIAEditingPipeline"
    own = type(pipe.scheduler)
    out = pipe(photo, "cat", "dog", num_inference_steps=10, mask=left, output_type="pt")
    z_0 = encode(pipe.inner(), photo)
    assert (out.source_latents - z_0).abs().max() < 1e-9
    assert (out.latents - z_0)[..., 4:].abs().max() < 1e-9
    assert out.images.shape == out.reconstructions.shape == photo.shape
    assert torch.equal(out.mask, latent_mask(left, z_0))
    assert type(pipe.scheduler) is own
    out.pair.save_pretrained(tmp_path)
    again = edit(pipe.inner(), BDIALatentPair.from_pretrained(tmp_path), "dog", mask=left)
    assert torch.equal(again.latents, out.latents)


def test_both_pipelines_load_in_one_process(saved_model, pipe):
    folder = str(FOLDER.with_name("bdia_inversion"))
    other = DiffusionPipeline.from_pretrained(saved_model, custom_pipeline=folder, trust_remote_code=True)
    assert type(other).__name__ == "BDIAInversionPipeline"
    assert type(pipe).__name__ == "BDIAEditingPipeline"


def test_pictures_and_one_prompt_an_image(pipe, photo):
    pictures = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    out = pipe(pictures, ["red", "blue"], ["blue", "blue"], num_inference_steps=5, mask="auto")
    assert [image.size for image in out.images] == [(16, 16)] * 2
    assert out.mask[1].max() == 0  # its prompts agree
    assert (out.latents - out.source_latents)[1].abs().max() == 0
    assert (out.latents - out.source_latents)[0].abs().max() > 0


def test_a_negative_prompt_is_used_both_ways(pipe, photo):
    z_0 = encode(pipe.inner(), photo)
    settings = {"num_inference_steps": 5, "output_type": "pt"}
    negative = {"negative_prompt": ["dim"] * 2}
    with_it = pipe(photo, "cat", "cat", **settings, **negative)
    assert (with_it.latents - z_0).abs().max() < 1e-10
    assert not torch.equal(with_it.pair.z_T, pipe(photo, "cat", "cat", **settings).pair.z_T)
    for_all = pipe(photo, "cat", "cat", **settings, negative_prompt="dim")
    assert torch.equal(for_all.pair.z_T, with_it.pair.z_T)
    again = edit(pipe.inner(), for_all.pair, "dog", negative_prompt="dim").latents
    assert torch.equal(again, edit(pipe.inner(), for_all.pair, "dog", **negative).latents)


def test_unguided_inversion_and_a_guided_edit(pipe, photo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = pipe(photo, "cat", "dog", 5, source_guidance_scale=1.0, guidance_scale=4.0)
    assert out.pair.guidance_scale == 1.0
    assert (out.source_latents - encode(pipe.inner(), photo)).abs().max() < 1e-10


def test_errors_reach_the_user(pipe, photo, tiny_pipeline):
    with pytest.raises(ValueError, match="multiplies rounding errors"):
        pipe(photo, "cat", "dog", gamma=0.5)
    with pytest.raises(ValueError, match=r"Unknown method 'edit'\. Did you mean 'edict'"):
        pipe(photo, "cat", "dog", method="edit")
    with pytest.raises(ValueError, match="'pil' or 'pt'"):
        pipe(photo, "cat", "dog", 3, output_type="np")
    with pytest.raises(ValueError, match="image is an empty list"):
        pipe([], "cat", "dog")
    with pytest.raises(ValueError, match="guidance_scale must be finite, got nan"):
        pipe(photo, "cat", "dog", guidance_scale=float("nan"))
    for option in ({"strenght": 0.5}, {"num_images_per_prompt": 2}, {"output_type": "latent"}):
        with pytest.raises(TypeError, match=f"StableDiffusionPipeline cannot be given {next(iter(option))}"):
            edit_image(pipe.inner(), photo, "cat", "dog", **option)
    with pytest.raises(ValueError, match="is unconditional"):
        edit_image(DDPMPipeline.from_pretrained(tiny_pipeline), torch.zeros(1, 1, 8, 8), "cat", "dog")
