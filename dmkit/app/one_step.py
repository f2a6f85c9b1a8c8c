"""The tab One step: a distilled student beside its teacher, and negative prompts by NASA or NAG."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..records import provenance
from ..schedulers.registry import build
from . import limits
from .jobs import Job
from .outcome import Outcome, call_text, script
from .sample import check_pixels, common
from .store import ModelStore, card

MODES = ("nasa", "nag")
SCALE = (0.0, 10.0)
MOST_SCALES = 6
# Few steps start at pure noise and end at the image.
SPACING: dict[str, Any] = {"timestep_spacing": "trailing"}
TIMES = ("what", "steps", "seconds")


def students(store: ModelStore) -> list[str]:
    """Models whose card has the tag `one-step`."""
    return store.names(text=True, one_step=True)


def teacher_of(store: ModelStore, student: str) -> str | None:
    """The model that a student's card names as its `base_model`, if it can be chosen."""
    named = card(store.find(student)[1]).get("base_model")
    return named if named in store.names(text=True) else None


def scales_of(value: Any) -> list[float]:
    """`0, 0.2, 0.4` -> numbers, each once.

    Raises:
        ValueError: not 1 to 6 numbers within bounds.
    """
    parts = [part.strip() for part in limits.text("The scales", value).split(",") if part.strip()]
    try:
        numbers = [limits.number("A scale", float(part), SCALE) for part in parts]
    except ValueError as error:
        raise ValueError(
            f"The scales must be numbers from 0 to {SCALE[1]:g} with commas between them."
        ) from error
    if not 1 <= len(numbers) <= MOST_SCALES:
        raise ValueError(f"Give 1 to {MOST_SCALES} scales, not {len(numbers)}.")
    return list(dict.fromkeys(numbers))


def steer(
    store: ModelStore,
    job: Job,
    *,
    model: Any,
    prompt: Any,
    negative_prompt: Any,
    mode: Any = "nasa",
    scales: Any = "0, 0.2, 0.4, 0.6",
    steps: Any = 4,
    num_images: Any = 2,
    seed: Any = 0,
) -> Outcome:
    """A strip: the same seeds, steered away from a negative prompt at each scale, without guidance.

    Raises:
        ValueError: an input out of bounds, or a model that cannot be steered.
        FileFormatError: a model that cannot be loaded.
        Cancelled: stopped; the model is as it was.
    """
    from ..evaluation import check_finite
    from ..guidance import NASA
    from ..sampling import generate

    limits.choice("model that takes prompts", model, store.names(text=True))
    model, text, steps, seeds = common(store, model, prompt, steps, num_images, seed)
    negative = limits.text("The negative prompt", negative_prompt)
    mode, numbers = limits.choice("way to steer", mode, MODES), scales_of(scales)
    own = model in students(store)
    spacing = {} if own else SPACING
    images, rows = {}, []
    with store.borrow(model, alone=True, check=job.check) as pipe:
        check_pixels(pipe, len(seeds))
        nasa = NASA(pipe, 0.0, mode=mode)
        for k, scale in enumerate(numbers):
            job.part(k, len(numbers), f"scale {scale:g}")
            nasa.scale = scale
            scheduler = pipe.scheduler if own else build("ddim", pipe.scheduler.config, **spacing)
            began = time.perf_counter()
            made = generate(
                pipe,
                scheduler,
                steps,
                seeds,
                prompt=text,
                negative_prompt=negative,
                call=nasa,
                on_step=job.step,
            )
            images[f"scale {scale:g}"] = check_finite(made, f"{mode} at scale {scale:g}")
            rows.append([f"scale {scale:g}", steps, f"{time.perf_counter() - began:.2f}"])
    chosen = "pipe.scheduler" if own else f'build("ddim", pipe.scheduler.config{call_text(**spacing)})'
    code = script(
        store.opening(model),
        "from dmkit.guidance import NASA",
        "from dmkit.sampling import generate",
        [] if own else "from dmkit.schedulers.registry import build",
        f"nasa = NASA(pipe, 0.0, mode={mode!r})",
        "images = {}",
        f"for scale in {numbers!r}:",
        "    nasa.scale = scale",
        f'    images[f"scale {{scale:g}}"] = generate(pipe, {chosen}, {steps}, {seeds!r}'
        f"{call_text(prompt=text, negative_prompt=negative)}, call=nasa)",
    )
    about = provenance(
        model=model,
        prompt=text,
        negative_prompt=negative,
        steering=mode,
        scales=numbers,
        steps=steps,
        seed=seeds[0],
        num_images=len(seeds),
    )
    return Outcome(images, about, code, rows, TIMES)


def compare(
    store: ModelStore,
    job: Job,
    *,
    model: Any,
    prompt: Any,
    steps: Any = 20,
    few: Any = 4,
    guidance_scale: Any = 3.0,
    num_images: Any = 4,
    seed: Any = 0,
) -> Outcome:
    """A student's one step against its teacher's many, or, for a model that is no student, few steps without
    guidance against many with it; with the times of both.

    Raises:
        ValueError: an input out of bounds, or a student whose teacher is not here.
        FileFormatError: a model that cannot be loaded.
        Cancelled: stopped.
    """
    from ..evaluation import check_finite
    from ..sampling import generate

    limits.choice("model that takes prompts", model, store.names(text=True))
    model, text, steps, seeds = common(store, model, prompt, steps, num_images, seed)
    guidance = limits.number("Guidance", guidance_scale, limits.GUIDANCE)
    student = model in students(store)
    teacher = teacher_of(store, model) if student else model
    if teacher is None:
        raise ValueError(f"The card of {model} names no teacher that is here.")
    few = 1 if student else limits.whole("Few steps", few, limits.STEPS)
    runs: Sequence[tuple[str, str, int, float, bool]] = (
        (_label(model, few), model, few, 1.0, student),
        (_label(teacher, steps), teacher, steps, guidance, False),
    )
    images, rows, lines = {}, [], []
    for k, (label, name, count, scale, own) in enumerate(runs):
        job.part(k, len(runs), label)
        with store.borrow(name, check=job.check) as pipe:
            check_pixels(pipe, len(seeds))
            spacing = {} if own or count > 10 else SPACING
            scheduler = pipe.scheduler if own else build("ddim", pipe.scheduler.config, **spacing)
            began = time.perf_counter()
            made = generate(
                pipe, scheduler, count, seeds, prompt=text, guidance_scale=scale, on_step=job.step
            )
            images[label] = check_finite(made, label)
            rows.append([label, count, f"{time.perf_counter() - began:.2f}"])
        chosen = "pipe.scheduler" if own else f'build("ddim", pipe.scheduler.config{call_text(**spacing)})'
        lines += [
            store.opening(name) if k == 0 or name != model else [],
            f"images[{label!r}] = generate(pipe, {chosen}, {count}, {seeds!r}"
            f"{call_text(prompt=text, guidance_scale=scale)})",
        ]
    code = script(
        "from dmkit.sampling import generate",
        "from dmkit.schedulers.registry import build",
        "images = {}",
        *lines,
    )
    about = provenance(
        model=model,
        teacher=teacher,
        prompt=text,
        steps=[few, steps],
        guidance_scale=[1.0, guidance],
        seed=seeds[0],
        num_images=len(seeds),
    )
    return Outcome(images, about, code, rows, TIMES)


def _label(model: str, steps: int) -> str:
    return f"{model}, {steps} step{'s' if steps > 1 else ''}"
