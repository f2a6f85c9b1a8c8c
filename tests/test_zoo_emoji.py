"""The shipped text-to-image model, as users of Diffusers would use it."""

import warnings

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from dmkit import zoo
from dmkit.metrics import psnr
from dmkit.schedulers import decode, encode, invert, reconstruct
from dmkit.schedulers.registry import SAMPLERS, VP, build

PROMPT = "a red heart on a blue background"


@pytest.fixture(scope="module")
def pipe():
    pipe = DiffusionPipeline.from_pretrained(zoo.path("emoji"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


def run(pipe, prompt=PROMPT, steps=4, generator=0, **arguments):
    arguments = {"guidance_scale": 3.0, "output_type": "pt", **arguments}
    made = seeds(generator)[0] if isinstance(generator, int) else generator
    return pipe(prompt, num_inference_steps=steps, generator=made, **arguments).images


def test_it_loads_by_its_path_alone_and_draws_what_is_asked(pipe):
    assert type(pipe) is StableDiffusionPipeline
    image = run(pipe, steps=15)[0]
    heart, corner = image[:, 12:18, 12:18].mean((1, 2)), image[:, :3, :3].mean((1, 2))
    assert heart[0] > 0.7
    assert heart[1:].max() < 0.45
    assert corner.argmax() == 2
    assert corner[0] < 0.75


def test_an_image_depends_on_its_seed_not_on_its_batch(pipe):
    together = run(pipe, [PROMPT, "a dog"], generator=seeds(3, 4))
    alone = run(pipe, "a dog", generator=seeds(4))
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-3)
    assert not torch.equal(together[0], together[1])


def test_prompts_guidance_and_negative_prompts_matter(pipe):
    images = [
        run(pipe),
        run(pipe, "a pizza"),
        run(pipe, guidance_scale=1.0),
        run(pipe, negative_prompt="red"),
    ]
    assert run(pipe, num_images_per_prompt=2).shape == (2, 3, 32, 32)
    for k, one in enumerate(images):
        for other in images[k + 1 :]:
            assert (one - other).abs().max() > 0.02


def test_latents_decode_to_the_images(pipe):
    latents = run(pipe, output_type="latent")
    assert latents.shape == (1, 4, 8, 8)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), run(pipe), rtol=0, atol=1e-5)


def test_callbacks_see_every_step(pipe):
    seen = []

    def watch(pipeline, step, timestep, state):
        seen.append((step, state["latents"].shape[0]))
        return state

    run(pipe, callback_on_step_end=watch)
    assert seen == [(k, 1) for k in range(4)]


def test_the_whole_pipeline_survives_a_round_trip(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), run(pipe))


def test_half_precision_loads_whole():
    half = DiffusionPipeline.from_pretrained(zoo.path("emoji"), torch_dtype=torch.float16)
    kinds = {p.dtype for part in (half.unet, half.vae, half.text_encoder) for p in part.parameters()}
    assert kinds == {torch.float16}


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.family == VP])
def test_every_sampler_runs_in_a_batch_with_guidance(pipe, name):
    own = pipe.scheduler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Time-Shift's word on latents of unit variance has its own tests
        try:
            options = {"time_shift_allow_latents": True} if name.startswith("ts-") else {}
            pipe.scheduler = build(name, own.config, **options)
            images = run(pipe, [PROMPT, "a dog"], steps=6, generator=seeds(0, 1))
        finally:
            pipe.scheduler = own
    assert images.isfinite().all()
    assert images[0].std() > 0.05


@pytest.mark.parametrize("name", ["ddim", "dpm++", "ts-ddim", "bdia"])
def test_image_to_image_shares_the_components(pipe, name):
    picture = Image.new("RGB", (32, 32), (150, 200, 250))
    options = {"time_shift_allow_latents": True} if name.startswith("ts-") else {}
    components = {**pipe.components, "scheduler": build(name, pipe.scheduler.config, **options)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
        changed.set_progress_bar_config(disable=True)
        images = run(changed, image=picture, strength=0.5, steps=6)
        assert images.shape == (1, 3, 32, 32)
        assert images.isfinite().all()


def test_inpainting_shares_the_components(pipe):
    picture = Image.open(zoo.examples("emoji")[0]).convert("RGB")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    painting = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    painting.set_progress_bar_config(disable=True)
    image = run(painting, image=picture, mask_image=mask, height=32, width=32, steps=10)
    alone = decode(pipe, encode(pipe, picture))[0] / 2 + 0.5  # what the autoencoder makes of it
    change = (image[0] - alone).abs().mean(0)
    assert change[:, :12].mean() < 0.3 * change[:, 20:].mean()


def test_bdia_with_guidance_comes_back_to_the_autoencoders_own_error(pipe):
    image = Image.open(zoo.examples("emoji")[0])
    latents = encode(pipe, image)
    pair = invert(pipe, latents=latents, prompt="a red die", num_inference_steps=10, guidance_scale=3.0)
    back = reconstruct(pipe, pair)
    assert psnr(back.latents, latents, data_range=float(latents.max() - latents.min())) > 100


def test_captions_of_the_examples_are_there():
    examples = zoo.examples("emoji")
    captions = (examples[0].parent / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert len(captions) == len(examples)
