"""What Time-Shift refuses and warns of, with the words that a user reads."""

import math
import re
import warnings

import pytest
import torch
from time_shift_cases import CLASSES, DISCRETE, PER_SAMPLE, net, ours, sample

from dmkit.schedulers import TimeShiftDDIMScheduler

X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
every_class = pytest.mark.parametrize("name", CLASSES)


def refused(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize("window", [-1, 2.5, "wide", True, None, math.nan])
def test_window(window):
    with refused(f"time_shift_window must be 'auto' or a whole number >= 0, got {window!r}"):
        ours("TimeShiftDDIMScheduler", time_shift_window=window)


@pytest.mark.parametrize("window", [-0.1, 2, "wide", math.nan])
def test_window_of_edm_is_a_fraction_of_the_step(window):
    with refused(f"must be 'auto' or a fraction of the step in [0, 2), got {window!r}"):
        ours("TimeShiftEDMEulerScheduler", time_shift_window=window)


@every_class
@pytest.mark.parametrize("cutoff", [-1, 1001, "late", math.nan])
def test_cutoff(name, cutoff):
    largest = 80.0 if "EDM" in name else 1000
    with refused(f"time_shift_cutoff must be 'auto' or lie in [0, {largest}], got {cutoff!r}"):
        ours(name, time_shift_cutoff=cutoff)


@every_class
@pytest.mark.parametrize("v_0", [0, -0.5, math.nan, "big"])
def test_data_variance(name, v_0):
    with refused(f"time_shift_data_variance must be a positive number, got {v_0!r}"):
        ours(name, time_shift_data_variance=v_0)


@pytest.mark.parametrize("name", DISCRETE)
def test_marginal_rule_needs_the_data_variance(name):
    with refused("time_shift_variance='marginal' needs time_shift_data_variance"):
        ours(name, time_shift_variance="marginal")


@pytest.mark.parametrize("v_0", [0.85, 1.0, 1.19])
def test_marginal_rule_is_blind_at_unit_variance(v_0):
    options = {"time_shift_variance": "marginal", "time_shift_data_variance": v_0}
    with refused("a state's variance is nearly the same at every noise level"):
        ours("TimeShiftDDIMScheduler", **options)
    ours("TimeShiftDDIMScheduler", **options, time_shift_allow_latents=True)


@pytest.mark.parametrize(
    ("key", "given", "near"),
    [
        ("time_shift_mode", "labels", "label"),
        ("time_shift_variance", "margin", "marginal"),
        ("time_shift_scope", "samples", "sample"),
    ],
)
def test_unknown_choices_name_the_near_one(key, given, near):
    with refused(f"Unknown {key} {given!r}. Did you mean {near!r}?"):
        ours("TimeShiftDDIMScheduler", **{key: given})


@pytest.mark.parametrize("name", [n for n in CLASSES if n not in PER_SAMPLE])
def test_sample_scope_is_refused_where_the_batch_has_one_level(name):
    with refused(f"{name} has one noise level for the whole batch"):
        ours(name, time_shift_scope="sample")


@pytest.mark.parametrize("name", ["TimeShiftEDMEulerScheduler", "TimeShiftFlowMatchEulerDiscreteScheduler"])
def test_continuous_schedules_have_no_level_mode(name):
    with refused("has no time_shift_mode='level'"):
        ours(name, time_shift_mode="level")


def test_flow_models_are_sent_to_the_flow_class():
    for extra in ({"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}):
        with refused("flow-matching models take TimeShiftFlowMatchEulerDiscreteScheduler"):
            ours("TimeShiftDPMSolverMultistepScheduler", **extra)


def test_euler_needs_training_timesteps():
    with refused("timestep_type='continuous' has no training timesteps to search"):
        ours("TimeShiftEulerDiscreteScheduler", timestep_type="continuous", prediction_type="v_prediction")


@pytest.mark.parametrize("scaling", [-1, math.nan, "much"])
def test_epsilon_scaling(scaling):
    with refused(f"epsilon_scaling must be a number above -1, got {scaling!r}"):
        ours("TimeShiftDDIMScheduler", epsilon_scaling=scaling)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_window_of_a_whole_stride_to_each_side_is_refused(name):
    stride = 90 if "Multistep" in name else 100  # those divide T by N + 1
    scheduler = ours(name, timestep_spacing="leading", time_shift_window=2 * stride)
    with refused(f"time_shift_window={2 * stride} reaches {stride} timesteps to each side"):
        scheduler.set_timesteps(10)
    with refused(f"of this grid are {stride} apart"):
        scheduler.set_timesteps(10)


def test_a_window_above_half_a_stride_warns_and_half_a_stride_does_not():
    with pytest.warns(UserWarning, match="more than half a stride"):
        ours("TimeShiftDDIMScheduler", time_shift_window=102).set_timesteps(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours("TimeShiftDDIMScheduler", time_shift_window=100).set_timesteps(10)


@every_class
def test_step_before_set_timesteps(name):
    t = torch.tensor(1.0) if "Euler" in name else 1
    with refused(f"{name}.step was called before set_timesteps", RuntimeError):
        ours(name).step(X, t, X)


@every_class
def test_step_after_the_last(name):
    scheduler = ours(name)
    sample(scheduler, X, 5)
    with refused("All steps of this run are done", RuntimeError):
        scheduler.step(X, scheduler.timesteps[-1], X)


@every_class
def test_timestep_of_another_schedule(name):
    scheduler = ours(name)
    scheduler.set_timesteps(5)
    getattr(scheduler, "scale_model_input", lambda x, t: x)(X, scheduler.timesteps[0])
    if "Euler" in name and "Flow" not in name:  # scaling the input has entered the grid already
        scheduler._step_index = None
    with refused("is not on this run's grid"):
        scheduler.step(X, torch.tensor(1.2345 if "Euler" in name else 777), X)


@every_class
def test_states_that_are_not_finite(name):
    scheduler = ours(name)
    scheduler.set_timesteps(10)
    x = X * getattr(scheduler, "init_noise_sigma", 1)
    with refused("NaN or infinite values after step"):
        for t in scheduler.timesteps:
            model_input = getattr(scheduler, "scale_model_input", lambda x, t: x)(x, t)
            x = scheduler.step(net(model_input, t) * math.nan, t, x).prev_sample


def test_errors_come_from_files_too(tmp_path):
    """A config edited by hand is checked when it is loaded."""
    TimeShiftDDIMScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(path.read_text().replace('"time_shift_mode": "label"', '"time_shift_mode": "lable"'))
    with refused("Unknown time_shift_mode 'lable'. Did you mean 'label'?"):
        TimeShiftDDIMScheduler.from_pretrained(tmp_path)
