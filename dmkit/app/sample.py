"""The tab Sample: one model, one set of seeds, two samplers side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..records import plain, provenance
from ..schedulers.registry import SAMPLERS, build, check_steps
from . import limits
from .jobs import Job
from .outcome import Outcome, call_text, script
from .store import ModelStore

TIME_SHIFTED = tuple(name for name in SAMPLERS if name.startswith("ts-"))


def common(
    store: ModelStore, model: Any, prompt: Any, steps: Any, num_images: Any, seed: Any
) -> tuple[str, str | None, int, range]:
    """The inputs that most tabs have, checked: model, prompt (None where the model takes none), steps, seeds.

    Raises:
        ValueError: one of them is out of bounds.
    """
    model = limits.choice("model", model, store.names())
    text = limits.text("The prompt", prompt) if store.takes_text(model) else None
    steps = limits.whole("Steps", steps, limits.STEPS)
    first, count = (
        limits.whole("The seed", seed, limits.SEED),
        limits.whole("Images", num_images, limits.IMAGES),
    )
    return model, text, steps, range(first, first + count)


def guidance_arguments(text: str | None, negative_prompt: Any, guidance_scale: Any) -> dict[str, Any]:
    """Arguments of a text-to-image pipeline's call; none for other models.

    Raises:
        ValueError: out of bounds.
    """
    if text is None:
        return {}
    arguments: dict[str, Any] = {"guidance_scale": limits.number("Guidance", guidance_scale, limits.GUIDANCE)}
    if negative := limits.text("The negative prompt", negative_prompt or "", required=False):
        arguments["negative_prompt"] = negative
    return arguments


def check_pixels(pipe: Any, num_images: int) -> None:
    """Raises:
    ValueError: the images have too many pixels together.
    """
    from ..evaluation import image_size

    _, size = image_size(pipe)
    if size is not None:
        limits.pixels(*size, num_images)


def window(what: str, value: Any) -> float | int | str:
    """`auto` or a number of timesteps.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, str) and value.strip() == "auto":
        return "auto"
    try:
        value = float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{what} must be auto or a number, not {value[:40]!r}.") from None
    return limits.whole(what, value, (0, 1000))


def sample(
    store: ModelStore,
    job: Job,
    *,
    model: Any,
    prompt: Any = "",
    negative_prompt: Any = "",
    sampler: Any = "ddim",
    other: Any = "ts-ddim",
    steps: Any = 10,
    guidance_scale: Any = 3.0,
    num_images: Any = 4,
    seed: Any = 0,
    time_shift_window: Any = "auto",
    time_shift_cutoff: Any = "auto",
) -> Outcome:
    """Images of both samplers on the same seeds; `extra` holds the shifted steps as `shifts` has them.

    Raises:
        ValueError: an input out of bounds, or samplers that the model or the number of steps does not suit.
        FileFormatError: a model that cannot be loaded.
        Cancelled: stopped.
    """
    from ..evaluation import check_finite
    from ..sampling import generate

    model, text, steps, seeds = common(store, model, prompt, steps, num_images, seed)
    arguments = guidance_arguments(text, negative_prompt, guidance_scale)
    names = list(dict.fromkeys(limits.choice("sampler", name, SAMPLERS) for name in (sampler, other)))
    settings: dict[str, Any] = {}
    if any(name in TIME_SHIFTED for name in names):
        settings["time_shift_window"] = window("The window", time_shift_window)
        settings["time_shift_cutoff"] = window("The cut-off", time_shift_cutoff)
    images, configs = {}, {}
    rows: list[tuple[str, float, float]] = []
    with store.borrow(model, check=job.check) as pipe:
        check_pixels(pipe, len(seeds))
        built = {name: build(name, pipe.scheduler.config, ignore_foreign=True, **settings) for name in names}
        for name, scheduler in built.items():
            check_steps(name, scheduler, steps)
        for k, (name, scheduler) in enumerate(built.items()):
            job.part(k, len(built), name)
            on_step = partial(_report, job, name, scheduler, tuple(rows))
            made = generate(pipe, scheduler, steps, seeds, prompt=text, on_step=on_step, **arguments)
            images[name] = check_finite(made, f"{name} at {steps} steps")
            rows += shifts(name, scheduler)
            configs[name] = plain(scheduler.config)
    code = script(
        store.opening(model),
        "from dmkit.images import grid",
        "from dmkit.sampling import generate",
        "from dmkit.schedulers.registry import build",
        "images = {}",
        f"for name in {tuple(names)!r}:",
        f"    scheduler = build(name, pipe.scheduler.config, ignore_foreign=True{call_text(**settings)})",
        f"    images[name] = generate(pipe, scheduler, {steps}, {seeds!r}"
        f"{call_text(prompt=text, **arguments)})",
        '    grid(images[name], scale=4).save(f"{name}.png")',
    )
    about = provenance(
        model=model,
        prompt=text,
        samplers=names,
        steps=steps,
        seed=seeds[0],
        num_images=len(seeds),
        **arguments,
        **settings,
        schedulers=configs,
    )
    return Outcome(images, about, code, extra=rows)


def _report(
    job: Job, name: str, scheduler: Any, before: tuple[tuple[str, float, float], ...], done: int, total: int
) -> None:
    """After a step: the progress, and the shifts so far."""
    job.step(done, total)
    if found := shifts(name, scheduler):
        job.show([*before, *found])


def shifts(name: str, scheduler: Any) -> list[tuple[str, float, float]]:
    """(sampler, scheduled timestep, label minus scheduled timestep) of a Time-Shift run so far."""
    trace = getattr(scheduler, "time_shift_trace", [])
    return [
        (name, float(s.scheduled), float(s.label) - float(s.scheduled)) for s in trace if not s.label.ndim
    ]


def sampler_choices() -> list[str]:
    """Samplers, the ones of most use first."""
    first = ["ddim", "ts-ddim", "dpm++", "ts-dpm++", "bdia", "obelm", "edict"]
    rest = [name for name in SAMPLERS if name not in first]
    return [*first, *rest]
