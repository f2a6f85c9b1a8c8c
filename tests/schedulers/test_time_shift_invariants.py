"""What holds for every Time-Shift class, whatever its solver."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from time_shift_cases import (
    CLASSES,
    CONTINUOUS,
    DISCRETE,
    PER_SAMPLE,
    Denoiser,
    net,
    ours,
    parent,
    sample,
    states,
)

from dmkit.schedulers import per_sample_timesteps

# Images this noisy are taken for latents near the end of some runs, which stops the shift there.
pytestmark = pytest.mark.filterwarnings("ignore:These look like")
X = states(0.97, 0.99, 1.0, 1.01)
VARIANTS = [
    *CLASSES.items(),
    ("TimeShiftPNDMScheduler", {"skip_prk_steps": False}),
    ("TimeShiftDPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
    ("TimeShiftEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("TimeShiftDDPMScheduler", {"timestep_spacing": "trailing"}),
]
every_variant = pytest.mark.parametrize(
    ("name", "extra"), VARIANTS, ids=lambda v: v if isinstance(v, str) else ""
)
every_class = pytest.mark.parametrize("name", CLASSES)


def noise_argument(name, seed=3):
    """The generator for solvers that draw noise; the rest must not be given any surprises."""
    return {"generator": torch.Generator().manual_seed(seed)} if "DDPM" in name else {}


def scheduled_and_labels(scheduler):
    """The run's schedule with the labels of the trace in their places, as the network must have seen it."""
    expected, shifts = list(scheduler._schedule), iter(scheduler.time_shift_trace)
    shift = next(shifts, None)
    for i, t in enumerate(scheduler._schedule):
        last_of_equals = t not in scheduler._schedule[i + 1 :]  # PNDM tries a time before it arrives there
        if shift is not None and t == shift.scheduled and last_of_equals:
            expected[i], shift = float(shift.label), next(shifts, None)
    assert shift is None  # every shift of the trace belongs to an entry
    return expected


# -- where nothing shifts, the parent ------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("off", ["window", "cutoff"])
def test_switched_off_it_is_the_parent_bit_for_bit(name, extra, off):
    largest = 80.0 if "EDM" in name else 1000
    option = {"time_shift_window": 0} if off == "window" else {"time_shift_cutoff": largest}
    scheduler = ours(name, **extra, **option)
    x = sample(scheduler, X, 10, **noise_argument(name))
    assert x.equal(sample(parent(name, **extra), X, 10, **noise_argument(name)))
    assert scheduler.time_shift_trace == []


@every_variant
@pytest.mark.parametrize("off", [True, False])
def test_a_slice_of_the_grid_runs(name, extra, off):
    """Image-to-image enters the grid in the middle, with or without `set_begin_index`."""
    scheduler = ours(name, **extra, **({"time_shift_window": 0} if off else {}))
    theirs = parent(name, **extra)
    for begin in (False, True):
        results = []
        for s in (scheduler, theirs):
            s.set_timesteps(10)
            x = X.clone()
            if begin and hasattr(s, "set_begin_index"):
                s.set_begin_index(4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for t in s.timesteps[4:]:
                    model_input = getattr(s, "scale_model_input", lambda x, t: x)(x, t)
                    x = s.step(net(model_input, t), t, x, **noise_argument(name)).prev_sample
            results.append(x)
        assert results[0].isfinite().all()
        assert not off or results[0].equal(results[1])


@every_class
def test_it_shifts_by_default(name):
    """Without this the tests of what switches it off would show nothing."""
    scheduler = ours(name)
    shifted = sample(scheduler, X, 10, **noise_argument(name))
    assert len(scheduler.time_shift_trace) >= 3
    assert not shifted.equal(sample(parent(name), X, 10, **noise_argument(name)))


@every_class
def test_a_run_forgets_the_run_before(name):
    scheduler = ours(name)
    first = sample(scheduler, X, 10, **noise_argument(name))
    trace = [shift.label.item() for shift in scheduler.time_shift_trace]
    scheduler.set_timesteps(10)  # a run that stops half way
    half = X * getattr(scheduler, "init_noise_sigma", 1)
    for t in scheduler.timesteps[:4]:
        model_input = getattr(scheduler, "scale_model_input", lambda x, t: x)(half, t)
        half = scheduler.step(net(model_input, t), t, half, **noise_argument(name)).prev_sample
    again = sample(scheduler, X, 10, **noise_argument(name))
    assert again.equal(first)
    assert [shift.label.item() for shift in scheduler.time_shift_trace] == trace


# -- labels --------------------------------------------------------------------------------------------------


@every_variant
def test_network_gets_the_labels_of_the_trace(name, extra):
    scheduler, seen = ours(name, **extra), []
    sample(scheduler, X, 10, seen=seen, **noise_argument(name))
    uneven = extra.get(
        "use_karras_sigmas"
    )  # its times lie between timesteps, the nearest of which is "no shift"
    assert seen[0] == scheduler._schedule[0]  # the first is never shifted
    if not extra.get("skip_prk_steps", True):  # a Runge-Kutta start's middle stages follow their label
        seen, expected = seen[::4][:3] + seen[12:], scheduled_and_labels(scheduler)
        assert seen == expected[::4][:3] + expected[12:]
    else:
        assert seen == pytest.approx(scheduled_and_labels(scheduler), abs=0.5 if uneven else 1e-4)


@every_class
def test_output_carries_the_label_of_its_state(name):
    scheduler = ours(name)
    scheduler.set_timesteps(10)
    x, labels = X * getattr(scheduler, "init_noise_sigma", 1), []
    for t in scheduler.timesteps:
        model_input = getattr(scheduler, "scale_model_input", lambda x, t: x)(x, t)
        output = scheduler.step(net(model_input, t), t, x, **noise_argument(name))
        x = output.prev_sample
        if output.shifted_timesteps is not None:
            labels.append(output.shifted_timesteps)
    assert labels[-1].item() != pytest.approx(scheduler._schedule[-1])  # the terminal state has none
    assert len(labels) == len(scheduler.time_shift_trace)
    as_tuple = ours(name)
    as_tuple.set_timesteps(10)
    t = as_tuple.timesteps[0]
    getattr(as_tuple, "scale_model_input", lambda x, t: x)(X, t)
    assert type(as_tuple.step(X, t, X, return_dict=False)) is tuple


def test_cutoff_tests_the_timestep_that_the_step_begins_at():
    """t > t_c: with t_c = 300 the step from 400 still shifts the state at 300, the one from 300 nothing."""
    scheduler = ours("TimeShiftDDIMScheduler", time_shift_window=40, time_shift_cutoff=300)
    sample(scheduler, X, 10)
    assert [shift.scheduled for shift in scheduler.time_shift_trace] == [800, 700, 600, 500, 400, 300]


def test_automatic_window_and_cutoff():
    """0.2 strides to each side, and 0.3 T."""
    scheduler = ours("TimeShiftDDIMScheduler", time_shift_allow_latents=True)
    sample(scheduler, 3 * X, 10)  # far more variance than any level: the upper edges
    assert scheduler.time_shift_trace[0].label == 820
    assert scheduler.time_shift_trace[-1].scheduled == 300


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DISCRETE),
    st.integers(3, 60),
    st.one_of(st.just("auto"), st.integers(0, 300)),
    st.floats(0, 900),
    st.floats(0.3, 2.5),
    st.booleans(),
)
def test_labels_strictly_decrease_and_stay_in_their_windows(name, steps, window, cutoff, scale, uneven):
    extra = {"use_karras_sigmas": True} if uneven and "Multistep" in name else {}
    scheduler = ours(
        name, **extra, time_shift_window=window, time_shift_cutoff=cutoff, time_shift_allow_latents=True
    )
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sample(scheduler, scale * X, steps, seen=seen, **noise_argument(name))
        except ValueError as error:
            assert "out of order" in str(error)  # noqa: PT017
            return
    scheduled = scheduler._schedule
    if "PNDM" in name:  # its second call tries the end of the first step, and is not shifted
        seen, scheduled = seen[:1] + seen[2:], scheduled[:1] + scheduled[2:]
    strides = [a - b for a, b in itertools.pairwise(scheduled)]
    if min(strides) >= 1:  # Karras grids of many steps repeat timesteps
        assert all(a > b for a, b in itertools.pairwise(seen))
    for i, (label, t) in enumerate(zip(seen, scheduled, strict=True)):
        half = 0 if not i else round(0.2 * strides[i - 1]) if window == "auto" else window // 2
        assert (
            abs(label - t) <= half + 0.5
        )  # a grid may lie between timesteps; the window is about the nearest


# -- images of a batch ---------------------------------------------------------------------------------------


def sample_each(name, x, steps=10, **options):
    """Scope "sample": through the hook, as a pipeline would."""
    scheduler, model = ours(name, time_shift_scope="sample", **options), Denoiser()
    with per_sample_timesteps(model, scheduler):
        result = sample(scheduler, x, steps, network=model)
    return result, scheduler, model.seen


DETERMINISTIC = [name for name in PER_SAMPLE if "DDPM" not in name]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_images_of_a_batch_run_as_they_do_alone(name):
    together, scheduler, seen = sample_each(name, X)
    spread = [shift.label.max() - shift.label.min() for shift in scheduler.time_shift_trace]
    assert max(spread) > 0  # the images do differ
    for k in range(len(X)):
        alone, labels = ours(name), []
        one = sample(alone, X[k : k + 1], 10, seen=labels)
        torch.testing.assert_close(together[k : k + 1], one, atol=2e-6, rtol=2e-6)
        assert [step[k] if len(step) > 1 else step[0] for step in seen] == pytest.approx(labels)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(DETERMINISTIC), st.permutations(range(4)))
def test_permuting_the_batch_permutes_labels_and_images(name, order):
    straight, first, _ = sample_each(name, X)
    permuted, second, _ = sample_each(name, X[list(order)])
    for a, b in zip(first.time_shift_trace, second.time_shift_trace, strict=True):
        assert a.label[list(order)].equal(b.label)
    torch.testing.assert_close(straight[list(order)], permuted, atol=1e-9, rtol=1e-9)


def test_batch_scope_gives_one_label_from_the_mean_variance():
    scheduler = ours("TimeShiftDDIMScheduler")
    sample(scheduler, X, 10)
    each = ours("TimeShiftDDIMScheduler", time_shift_scope="sample")
    each.set_timesteps(10)
    t = each.timesteps[0]
    each.step(net(X, t), t, X)
    shift, of_each = scheduler.time_shift_trace[0], each.time_shift_trace[0]
    assert shift.label.ndim == 0
    assert of_each.label.shape == of_each.variance.shape == (4,)
    torch.testing.assert_close(shift.variance, of_each.variance.mean())


def test_ddpm_runs_each_image_from_its_own_label():
    x, scheduler, seen = sample_each("TimeShiftDDPMScheduler", X)
    assert x.isfinite().all()
    labels = [shift.label.tolist() for shift in scheduler.time_shift_trace]
    assert [step for step in seen if len(step) == 4] == labels


def test_cutoff_zero_shifts_to_the_end_of_the_grid():
    _, scheduler, seen = sample_each("TimeShiftDDIMScheduler", X, time_shift_cutoff=0)
    assert scheduler.time_shift_trace[-1].scheduled == 0
    assert all(len(step) == 4 for step in seen[1:])


# -- dtypes --------------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_samples_keep_their_dtype(name, dtype):
    scheduler = ours(name)
    x = sample(scheduler, X.to(dtype), 5, **noise_argument(name))
    assert x.dtype == dtype
    assert x.isfinite().all()


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_samples_keep_their_dtype_with_a_label_each(name):
    x, _, _ = sample_each(name, X.to(torch.float16))
    assert x.dtype == torch.float16


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_the_terminal_level_is_zero_and_stays(name):
    scheduler = ours(name, time_shift_cutoff=0)
    sample(scheduler, X, 10)
    assert scheduler.sigmas[-1] == 0
