"""Time-Shift in unmodified pipelines: what the network is told, saving and loading, the per-image hook."""

import inspect
import json
import subprocess
import sys
import warnings

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
)
from time_shift_cases import CLASSES, DISCRETE, PER_SAMPLE, Denoiser, ours, parent, sample
from tiny_flow import tiny_sd3_transformer

import dmkit.schedulers
from dmkit.data.exact import ExactDenoiser, GaussianMixture
from dmkit.schedulers import (
    TimeShiftDDIMScheduler,
    TimeShiftFlowMatchEulerDiscreteScheduler,
    per_sample_timesteps,
)

# That pipeline gives each step a generator, which not all take, and does not scale the network's input.
IN_DDPM_PIPELINE = [name for name in DISCRETE if not any(kind in name for kind in ("UniPC", "DEIS", "Euler"))]
every_class = pytest.mark.parametrize("name", CLASSES)


def spied(pipe, model):
    """The list that collects the timesteps that `model` gets, and the handle of the spy."""
    seen = []

    def spy(module, args, kwargs):
        t = kwargs["timestep"] if "timestep" in kwargs else args[1]
        seen.append(torch.as_tensor(t).flatten().tolist())

    pipe.set_progress_bar_config(disable=True)
    return seen, model.register_forward_pre_hook(spy, with_kwargs=True)


@pytest.fixture
def pixel_pipe():
    """An unconditional pipeline whose images have a known, small variance."""
    centres = 0.3 * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(clip_sample=False)
    return DDPMPipeline(ExactDenoiser(GaussianMixture(centres, 0.1), scheduler.alphas_cumprod), scheduler)


def labels(scheduler, schedule):
    at = {shift.scheduled: shift.label for shift in scheduler.time_shift_trace}
    return [at.get(t, torch.tensor(t)).flatten().tolist() for t in schedule]


# -- the network sees the labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_DDPM_PIPELINE)
@pytest.mark.parametrize("batch", [1, 3])
def test_unmodified_pipeline_feeds_the_labels(pixel_pipe, name, batch):
    pixel_pipe.scheduler = getattr(dmkit.schedulers, name).from_config(
        pixel_pipe.scheduler.config, **CLASSES[name], time_shift_window=40, time_shift_cutoff=200
    )
    seen, _ = spied(pixel_pipe, pixel_pipe.unet)
    pixel_pipe(batch, torch.Generator().manual_seed(1), num_inference_steps=10, output_type="pt")
    scheduler = pixel_pipe.scheduler
    assert len(scheduler.time_shift_trace) >= 5
    expected = labels(scheduler, scheduler._schedule)
    if "PNDM" in name:  # calls 1 and 2 are both for 800; the first only tries it
        expected[1] = [800]
    assert seen == expected
    assert sum(s != [t] for s, t in zip(seen, scheduler._schedule, strict=True)) >= 5


def test_pipeline_that_copies_the_timesteps_gets_the_scheduled_levels():
    """The network does not see labels there, so none may be used."""
    scheduler, theirs = ours("TimeShiftDDIMScheduler"), parent("TimeShiftDDIMScheduler")
    x = y = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    for s in (scheduler, theirs):
        s.set_timesteps(10)
    model = Denoiser()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(model(x, t), t, x).prev_sample
            y = theirs.step(model(y, t), t, y).prev_sample
    assert ["works on a copy" in str(w.message) for w in caught] == [True]
    assert x.equal(y)


LATENTS = {"time_shift_window": 40, "time_shift_cutoff": 100, "time_shift_allow_latents": True}


@pytest.mark.parametrize("name", DISCRETE)
def test_text_to_image_with_guidance(text_pipe, name):
    text_pipe.scheduler = getattr(dmkit.schedulers, name).from_config(
        text_pipe.scheduler.config, **CLASSES[name], **LATENTS
    )
    seen, spy = spied(text_pipe, text_pipe.unet)
    with spy, pytest.warns(UserWarning, match="unit-variance latents"):
        text_pipe("a cat", num_inference_steps=10, guidance_scale=4.0, output_type="pt")
    scheduler = text_pipe.scheduler
    expected = labels(scheduler, scheduler._schedule)
    if "PNDM" in name:
        expected[1] = [scheduler._schedule[1]]
    assert seen == expected
    assert len(scheduler.time_shift_trace) == 9


def test_image_to_image(text_pipe):
    img2img = StableDiffusionImg2ImgPipeline(**text_pipe.components, requires_safety_checker=False)
    img2img.scheduler = TimeShiftDDIMScheduler.from_config(text_pipe.scheduler.config, **LATENTS)
    seen, spy = spied(img2img, img2img.unet)
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with spy, pytest.warns(UserWarning, match="unit-variance latents"):
        img2img(["a cat", "a dog"], picture, strength=0.6, num_inference_steps=10, output_type="pt")
    assert len(seen) == 6
    assert seen == labels(img2img.scheduler, img2img.scheduler._schedule[4:])
    assert [shift.scheduled for shift in img2img.scheduler.time_shift_trace] == [401, 301, 201, 101, 1]


def test_flow_matching_pipeline(vae):
    torch.manual_seed(5)
    transformer = tiny_sd3_transformer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    pipe = StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **parts)
    pipe.scheduler = TimeShiftFlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    seen, _ = spied(pipe, pipe.transformer)
    generator = torch.Generator().manual_seed(6)
    pipe(
        prompt_embeds=torch.randn(2, 5, 16, generator=generator),
        pooled_prompt_embeds=torch.randn(2, 16, generator=generator),
        guidance_scale=1.0,
        height=16,
        width=16,
        num_inference_steps=10,
        generator=generator,
        output_type="latent",
    )
    trace = pipe.scheduler.time_shift_trace
    assert len(trace) >= 4
    expected = labels(pipe.scheduler, pipe.scheduler._schedule)
    assert [t for t, _ in seen] == pytest.approx([t for (t,) in expected])  # each for a batch of two


# -- a label for each image ----------------------------------------------------------------------------------


def test_labels_are_tiled_for_guidance_and_the_hook_leaves_nothing_behind(text_pipe):
    x, t = torch.randn(2, 4, 8, 8), torch.tensor(500)
    hidden = torch.randn(2, 16, 16)
    with torch.no_grad():
        before = text_pipe.unet(x, t, hidden).sample
    hooks = len(text_pipe.unet._forward_pre_hooks)
    options = {"time_shift_scope": "sample", "time_shift_allow_latents": True, "clip_sample": False}
    text_pipe.scheduler = TimeShiftDDIMScheduler.from_config(text_pipe.scheduler.config, **options)
    latents = torch.tensor([0.6, 1.0, 1.4]).view(3, 1, 1, 1) * torch.randn(3, 4, 8, 8)
    call = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "latent", "latents": latents}
    with warnings.catch_warnings(), per_sample_timesteps(text_pipe.unet, text_pipe.scheduler):
        warnings.simplefilter("ignore")
        seen, spy = spied(text_pipe, text_pipe.unet)
        with spy:
            text_pipe(["a cat", "a dog", "a fox"], **call)
    trace = text_pipe.scheduler.time_shift_trace
    assert any(shift.label.unique().numel() > 1 for shift in trace)
    for got, shift in zip(seen[1:], trace, strict=True):
        assert got == shift.label.tolist() * 2  # [uncond, cond]: repeated, not interleaved
    assert len(text_pipe.unet._forward_pre_hooks) == hooks
    with torch.no_grad():
        assert text_pipe.unet(x, t, hidden).sample.equal(before)


def test_hook_is_removed_when_a_run_fails(pixel_pipe):
    pixel_pipe.scheduler = TimeShiftDDIMScheduler(time_shift_scope="sample")
    with (
        pytest.raises(KeyboardInterrupt),
        per_sample_timesteps(pixel_pipe.unet, pixel_pipe.scheduler),
    ):
        raise KeyboardInterrupt
    assert not pixel_pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_run_without_the_hook_is_stopped(name):
    with pytest.raises(RuntimeError, match="nothing handed them to the network"):
        sample(ours(name, time_shift_scope="sample"), torch.randn(2, 1, 4, 4), 10)


def test_hook_refuses_what_it_cannot_serve(pixel_pipe):
    with (
        pytest.raises(ValueError, match="for a Time-Shift scheduler with time_shift_scope='sample'"),
        per_sample_timesteps(pixel_pipe.unet, pixel_pipe.scheduler),
    ):
        pass
    scheduler, model = ours("TimeShiftDDIMScheduler", time_shift_scope="sample"), Denoiser()
    scheduler.set_timesteps(10)
    x, t = torch.randn(3, 1, 4, 4), scheduler.timesteps[0]
    scheduler.step(model(x, t), t, x)
    with (
        per_sample_timesteps(model, scheduler),
        pytest.raises(ValueError, match="batch of 4 is no multiple of the run's 3 images"),
    ):
        model(torch.randn(4, 1, 4, 4), scheduler.timesteps[1])


# -- configs -------------------------------------------------------------------------------------------------


@every_class
def test_from_config_of_the_parent_and_back(name):
    """Betas and all come along (a signature of **kwargs would drop them silently), and go back."""
    flow, edm = "Flow" in name, "EDM" in name
    settings = {"shift": 3.0} if flow else {"sigma_max": 60.0, "num_train_timesteps": 500}
    if not flow and not edm:
        settings = {"num_train_timesteps": 500, "beta_start": 0.001, "beta_schedule": "squaredcos_cap_v2"}
    theirs = parent(name, **settings)
    scheduler = getattr(dmkit.schedulers, name).from_config(theirs.config, time_shift_window=0)
    assert scheduler.config.time_shift_window == 0
    for key, value in theirs.config.items():
        if not key.startswith("_"):
            assert scheduler.config[key] == value
    assert scheduler.sigmas.equal(theirs.sigmas) if flow or edm else scheduler.betas.equal(theirs.betas)
    back = type(theirs).from_config(scheduler.config)
    again = getattr(dmkit.schedulers, name).from_config(back.config)
    assert again.config.time_shift_window == 0  # foreign keys survive a detour through the parent


@every_class
def test_saved_config_is_json_and_loads(name, tmp_path):
    continuous = {"time_shift_cutoff": 3.0} if "EDM" in name else {"time_shift_cutoff": 250}
    scheduler = ours(name, time_shift_data_variance=0.3, **continuous)
    scheduler.save_pretrained(tmp_path)
    files = [path.name for path in tmp_path.iterdir()]
    assert files == ["scheduler_config.json"]
    assert json.loads((tmp_path / files[0]).read_text())["time_shift_data_variance"] == 0.3
    loaded = getattr(dmkit.schedulers, name).from_pretrained(tmp_path)
    public = [{k: v for k, v in s.config.items() if k[0] != "_"} for s in (loaded, scheduler)]
    assert public[0] == public[1]


def test_positional_arguments_are_kept_by_from_config():
    scheduler = TimeShiftDDIMScheduler(500, 0.002)
    again = TimeShiftDDIMScheduler.from_config(scheduler.config)
    assert (again.config.num_train_timesteps, again.config.beta_start) == (500, 0.002)


@every_class
def test_signatures_are_the_parents(name):
    """Pipelines look there for `eta`, `generator`, `sigmas` and `mu`."""
    cls, theirs = getattr(dmkit.schedulers, name), getattr(diffusers, name.removeprefix("TimeShift"))
    for method in ("step", "set_timesteps"):
        known = set(inspect.signature(getattr(cls, method)).parameters)
        assert known >= set(inspect.signature(getattr(theirs, method)).parameters)
    assert set(inspect.signature(cls.__init__).parameters) == {
        *inspect.signature(theirs.__init__).parameters,
        *cls.OPTIONS,
    }


@pytest.mark.parametrize("name", [n for n in CLASSES if "Flow" not in n and "EDM" not in n])
def test_saved_pipeline_loads_after_import_dmkit_alone(name, tiny_pipeline, tmp_path):
    pipe = DDPMPipeline.from_pretrained(tiny_pipeline)
    pipe.scheduler = getattr(dmkit.schedulers, name).from_config(pipe.scheduler.config, time_shift_window=38)
    pipe.save_pretrained(tmp_path)
    if name != "TimeShiftDDPMScheduler":  # one fresh interpreter is enough; the others load here
        loaded = DiffusionPipeline.from_pretrained(tmp_path).scheduler
        assert type(loaded) is type(pipe.scheduler)
        assert loaded.config.time_shift_window == 38
        return
    code = (
        "import sys, dmkit\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path)!r})\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        "pipe(num_inference_steps=4, output_type='np')\n"
        "print(type(pipe.scheduler).__name__, pipe.scheduler.config.time_shift_window)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name, "38"]


def test_unit_variance_latents_are_always_at_the_upper_edge_and_need_an_opt_in():
    """Stable Diffusion's betas, noise rule, states of exactly unit variance at every level."""
    sd = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}

    def run(**options):
        scheduler = TimeShiftDDIMScheduler(**sd, time_shift_window=40, time_shift_cutoff=0, **options)
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
        scheduler.set_timesteps(10)
        for t, target in zip(scheduler.timesteps, [*range(800, -1, -100)], strict=False):
            a, b = scheduler.alphas_cumprod[int(t)].double(), scheduler.alphas_cumprod[target].double()
            ratio = (b / a).sqrt()
            keep = (1 - ratio) / ((1 - b).sqrt() - ratio * (1 - a).sqrt())  # with it DDIM's step is x itself
            x = scheduler.step(keep * x, t, x).prev_sample
        return [(shift.scheduled, shift.label.item()) for shift in scheduler.time_shift_trace]

    with pytest.warns(UserWarning, match="always picks the upper edge of its window. States are shifted all"):
        assert run(time_shift_allow_latents=True) == [(t, t + 20) for t in range(800, -1, -100)]
    with pytest.warns(UserWarning, match="States are not shifted") as caught:
        assert run() == []
    assert len(caught) == 1
