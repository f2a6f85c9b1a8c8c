"""Every named sampler: what it builds, that it samples, and what is refused."""

import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from dmkit.sampling import sample_batch
from dmkit.schedulers import registry
from dmkit.schedulers.registry import SAMPLERS, build, build_all

CONFIGS = {
    registry.VP: DDPMScheduler().config,
    registry.FLOW: FlowMatchEulerDiscreteScheduler().config,
    registry.EDM: EDMEulerScheduler().config,
}


@pytest.fixture(scope="module")
def unet(tiny_pipeline):
    return DiffusionPipeline.from_pretrained(tiny_pipeline).unet


def drawn(unet, scheduler, steps=6):
    return sample_batch(unet, scheduler, steps, range(5))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_samples(unet, name):
    scheduler = build(name, CONFIGS[SAMPLERS[name].family])
    images = drawn(unet, scheduler)
    assert images.shape == (5, 1, 8, 8)
    assert images.isfinite().all()
    assert torch.equal(images, drawn(unet, scheduler)), "a second run of the same seeds differs"


@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if s.family == registry.VP])
def test_the_models_schedule_is_taken_over(name):
    own = DDPMScheduler(beta_start=0.0002, beta_end=0.03, num_train_timesteps=500, prediction_type="sample")
    config = build(name, own.config).config
    for key in ("beta_start", "beta_end", "num_train_timesteps", "prediction_type"):
        assert config[key] == own.config[key]


@pytest.mark.parametrize("base", registry.BASES)
def test_prefixes_mean_what_they_say(unet, base):
    """A prefixed sampler with both parts off is its base; each prefix turns its own part on."""
    config, off = CONFIGS[registry.VP], {"time_shift_window": 0, "epsilon_scaling": 0.0}
    shift = {"time_shift_window": 100, "time_shift_cutoff": 0, "ignore_foreign": True}
    plain = drawn(unet, build(base, config))
    torch.testing.assert_close(drawn(unet, build(f"ts-es-{base}", config, **off)), plain)
    shifted, scaled = build(f"ts-{base}", config, **shift), build(f"es-{base}", config)
    assert not torch.allclose(drawn(unet, scaled), plain)
    assert not scaled.time_shift_trace
    drawn(unet, shifted)
    assert shifted.time_shift_trace
    assert (shifted.config.epsilon_scaling, scaled.config.epsilon_scaling) == (0, 0.01)
    both = build(f"ts-es-{base}", config, **shift)
    drawn(unet, both)
    assert both.time_shift_trace
    assert both.config.epsilon_scaling == 0.01


def test_settings_of_a_name_win_over_the_config_and_overrides_over_both():
    config = {**CONFIGS[registry.VP], "skip_prk_steps": False, "gamma": 0.9, "solver_order": 3}
    assert build("pndm", config).config.skip_prk_steps is True
    assert build("dpm++", config).config.solver_order == 2
    assert build("bdia", config).config.gamma == 0.5
    assert build("bdia", config, gamma=0.7).config.gamma == 0.7
    assert build("obelm", config).config.solver == "obelm"


def test_a_config_of_another_solver_causes_no_warning(caplog):
    saved = build("ts-euler", CONFIGS[registry.VP]).config
    for name in ("ddim", "bdia", "dpm++"):
        build(name, saved)
    assert not caplog.records


def test_unknown_names_and_settings_are_refused():
    config = CONFIGS[registry.VP]
    with pytest.raises(ValueError, match=r"Unknown sampler 'ts-dim'\. Did you mean 'ts-ddim'"):
        build("ts-dim", config)
    with pytest.raises(
        ValueError, match=r"Unknown setting of ts-ddim 'time_shift_windw'\. Did you mean 'time_shift_w"
    ):
        build("ts-ddim", config, time_shift_windw=40)
    with pytest.raises(ValueError, match="Unknown setting of ddim 'time_shift_window'"):
        build("ddim", config, time_shift_window=40)
    build("ddim", config, ignore_foreign=True, time_shift_window=40)


def test_several_share_the_settings_that_they_know():
    config = CONFIGS[registry.VP]
    built = build_all(["ddim", "ts-ddim"], config, time_shift_window=40, clip_sample=False)
    assert built["ts-ddim"].config.time_shift_window == 40
    assert [scheduler.config.clip_sample for scheduler in built.values()] == [False, False]
    with pytest.raises(ValueError, match="Unknown setting of ddim, ddpm 'time_shift_window'"):
        build_all(["ddim", "ddpm"], config, time_shift_window=40)
    with pytest.raises(ValueError, match="Which sampler"):
        build_all([], config)


@pytest.mark.parametrize(
    ("name", "family"), [("ts-flow", registry.VP), ("ddim", registry.FLOW), ("bdia", registry.EDM)]
)
def test_samplers_of_another_family_are_refused(name, family):
    with pytest.raises(ValueError, match=f"{name!r} is for .* noise schedules; this model's is {family} "):
        build(name, CONFIGS[family])


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("f-pndm", 3, "f-pndm takes at least 4 steps, not 3"),
        ("ts-f-pndm", 3, "ts-f-pndm takes at least 4 steps, not 3"),
        ("bdia", 1, "bdia at 1 steps: num_inference_steps must be at least 2"),
        ("ddim", 1001, "ddim at 1001 steps: .*cannot be larger than"),
    ],
)
def test_steps_that_cannot_be_run_are_refused_beforehand(name, steps, message):
    scheduler = build(name, CONFIGS[registry.VP])
    with pytest.raises(ValueError, match=message):
        registry.check_steps(name, scheduler, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_fewest_steps_can_be_run(unet, name):
    sampler = SAMPLERS[name]
    steps = max(sampler.least_steps, 2)
    scheduler = build(name, CONFIGS[sampler.family])
    registry.check_steps(name, scheduler, steps)
    drawn(unet, scheduler, steps)


def test_the_list_of_names_is_light():
    code = (
        "import sys, dmkit.schedulers.registry; print('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
