"""Conditions of the three layouts of text-to-image pipelines, against what the pipelines themselves do."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_layouts import LAYOUTS, pipeline_of

from dmkit.training.part import TrainedPart
from dmkit.training.prompting import Conditions, denoiser_of, encode, image_size, predict


@pytest.fixture(scope="module", params=LAYOUTS)
def pipe(request):
    return pipeline_of(request.param)


def test_predictions_are_those_of_the_pipelines_loop(pipe):
    """One DDIM step of the pipeline itself against one from `predict`."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    height, width = image_size(pipe)
    scale = pipe.vae_scale_factor
    start = torch.randn(2, 4, height // scale, width // scale, generator=torch.Generator().manual_seed(3))
    options = {"use_resolution_binning": False} if hasattr(pipe, "transformer") else {}
    result = pipe(
        ["a cat", "a red heart"],
        latents=start.clone(),
        guidance_scale=1.0,
        num_inference_steps=1,
        output_type="latent",
        **options,
    ).images
    conditions = encode(pipe, ["a cat", "a red heart"])
    (t,) = pipe.scheduler.timesteps
    with torch.no_grad():
        prediction = predict(denoiser_of(pipe), start * pipe.scheduler.init_noise_sigma, t, conditions)
    expected = pipe.scheduler.step(prediction, t, start).prev_sample
    assert prediction.shape == start.shape  # learned variances are left out
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_rows_repeat_and_cat(pipe):
    both = encode(pipe, ["a cat", "a red heart"])
    assert len(both) == 2
    cat, heart = both.rows(slice(0, 1)), both.rows([1])
    again = Conditions.cat([cat, heart])
    for name, value in (both.arguments | both.added).items():
        assert torch.equal((again.arguments | again.added)[name], value)
    for name, value in both.repeat(3).arguments.items():
        assert torch.equal(value[3:], both.arguments[name][1:].expand_as(value[3:]))
        assert len(value) == 6


@pytest.mark.parametrize("layout", [*LAYOUTS, "pixart-sizes"])
def test_size_is_told_where_the_model_takes_it(layout):
    pipe = pipeline_of(layout)
    conditions = encode(pipe, ["a cat"])
    told = conditions.sized(24, 16, original=(48, 32), crop=(2, 4)).added
    assert told.keys() == conditions.added.keys()
    if "time_ids" in told:
        assert told["time_ids"].tolist() == [[48, 32, 2, 4, 24, 16]]
        assert conditions.added["time_ids"].tolist() == [[*image_size(pipe), 0, 0, *image_size(pipe)]]
    if "resolution" in told:
        assert told["resolution"].tolist() == [[24, 16]]
        assert told["aspect_ratio"].tolist() == [[1.5]]
    assert bool(told) == (layout in ("sdxl", "pixart-sizes"))
    x = torch.ones(1, 4, 4, 4)
    network = denoiser_of(pipe)
    with torch.no_grad():
        near, far = (predict(network, x, 5, conditions.sized(side, 16)) for side in (16, 64))
    assert torch.equal(near, far) == (not told)


def test_sdxl_takes_zeros_for_the_empty_prompt():
    pipe = pipeline_of("sdxl")
    conditions = encode(pipe, ["a cat", ""])
    for value in (conditions.arguments["encoder_hidden_states"], conditions.added["text_embeds"]):
        assert value[0].abs().max() > 0
        assert value[1].abs().max() == 0
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert encode(pipe, [""]).added["text_embeds"].abs().max() > 0


def test_other_pipelines_and_no_prompts_are_refused(pipe):
    with pytest.raises(ValueError, match="no prompt to encode"):
        encode(pipe, [])
    with pytest.raises(TypeError, match="neither a `unet` nor a `transformer`"):
        denoiser_of(object())


def test_unconditional_pipelines_are_refused(tiny_pipeline):
    from diffusers import DDPMPipeline

    pipe = DDPMPipeline.from_pretrained(tiny_pipeline)
    pipe.vae_scale_factor = 1
    with pytest.raises(TypeError, match="DDPMPipeline with a UNet2DModel takes its text in a way"):
        encode(pipe, ["a cat"])


def test_a_part_trains_and_saves_nothing_else(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)).eval()
    chosen = {name: p for name, p in network.named_parameters() if name.startswith("2.")}
    part = TrainedPart(network, chosen)
    part.train()
    assert not network[1].training  # the network keeps its mode
    x = torch.ones(1, 3)
    assert torch.equal(part(x), network(x))
    assert {id(p) for p in part.parameters()} == {id(p) for p in chosen.values()}
    part.save_pretrained(tmp_path / "part")
    read = TrainedPart.from_pretrained(tmp_path / "part", torch_dtype=torch.float32, use_safetensors=True)
    assert list(read.state_dict()) == list(part.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), part.parameters(), strict=True))
    with pytest.raises(TypeError, match="has no network to run"):
        read(x)
    with pytest.raises(ValueError, match="no parameter to train"):
        TrainedPart(network, {})
