"""The tab Erase: a prompt and a control prompt without and with SPM adapters, on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import shipped
from ..errors import FileFormatError
from ..records import provenance
from ..schedulers.registry import build
from . import limits
from .jobs import Job
from .outcome import Outcome, call_text, script
from .sample import check_pixels, common
from .store import ModelStore

MOST_ADAPTERS = 4


def adapter_name(path: Path, taken: Sequence[str] = ()) -> str:
    """A name for a file's adapter that the pipeline takes and that is not taken yet."""
    name = (
        "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in path.stem)[:40] or "adapter"
    )
    return name if name not in taken else f"{name}_{len(taken)}"


def check_adapter(path: Path) -> str:
    """One line about an adapter's file.

    Raises:
        FileFormatError: too large, or no SPM of safetensors, whatever its name.
    """
    from ..adapters import read_spm

    if path.stat().st_size > limits.ADAPTER_BYTES:
        raise FileFormatError(f"An adapter may have {limits.ADAPTER_BYTES // 1024**2} MiB.")
    try:
        weights = read_spm(path)
    except FileFormatError as error:
        # Where the server keeps it is nobody's business.
        raise FileFormatError(str(error).replace(str(path), path.name)) from error
    targets = ", ".join(weights.metadata.targets) or "something that the file does not name"
    return f"{path.name} erases {targets}: rank {weights.rank} on {len(weights.layers)} layers."


def erase(
    store: ModelStore,
    job: Job,
    *,
    model: Any,
    adapters: Sequence[tuple[Path, Any]],
    prompt: Any,
    control: Any = "",
    transport: Any = True,
    steps: Any = 10,
    guidance_scale: Any = 3.0,
    num_images: Any = 4,
    seed: Any = 0,
) -> Outcome:
    """Images before and after, by prompt; `extra` holds (adapter, prompt, permeability).

    Args:
        store: the models.
        job: told of each step.
        model: a name of the store that takes prompts.
        adapters: files that were checked to lie in an allowed place, each with its factor.
        prompt: of the concept.
        control: another prompt, which should stay as it is; may be empty.
        transport: facilitated transport; without it the adapters act on every prompt alike.
        steps, guidance_scale, num_images, seed: of the sampling; the images of each prompt.

    Raises:
        ValueError: an input out of bounds, or an adapter without targets with transport on.
        FileFormatError: a damaged or foreign adapter, or one for another model.
        Cancelled: stopped; the model is as it was.
    """
    from ..adapters import SPM, read_spm
    from ..evaluation import check_finite
    from ..sampling import generate

    limits.choice("model that takes prompts", model, store.names(text=True))
    model, text, steps, seeds = common(store, model, prompt, steps, num_images, seed)
    assert text is not None
    prompts = list(
        dict.fromkeys(p for p in (text, limits.text("The control", control or "", required=False)) if p)
    )
    guidance = limits.number("Guidance", guidance_scale, limits.GUIDANCE)
    if not 0 < len(adapters) <= MOST_ADAPTERS:
        raise ValueError(f"Choose 1 to {MOST_ADAPTERS} adapters, not {len(adapters)}.")
    factors = [limits.number("A factor", factor, limits.FACTOR) for _, factor in adapters]
    names: list[str] = []
    for path, _ in adapters:
        check_adapter(path)
        names.append(adapter_name(path, names))
    texts = [p for p in prompts for _ in seeds]
    all_seeds = [*seeds] * len(prompts)
    options: dict[str, Any] = {"guidance_scale": guidance}
    with store.borrow(model, alone=True, check=job.check) as pipe:
        check_pixels(pipe, len(all_seeds))
        sampler = build("ddim", pipe.scheduler.config)
        draw = partial(generate, pipe, sampler, steps, all_seeds, prompt=texts, on_step=job.step, **options)
        job.part(0, 2, "before")
        before = check_finite(draw(), "The model")
        spm = SPM(pipe)
        try:
            with store.building:
                for (path, _), name in zip(adapters, names, strict=True):
                    spm.load_spm_weights(read_spm(path), name)
            spm.set_adapters(names, factors)
            job.part(1, 2, "after")
            after = check_finite(
                draw(call=partial(spm, facilitated_transport=bool(transport))), "The adapted model"
            )
            named = [name for name in names if spm.metadata[name].targets]
            gammas = spm.permeability(prompts) if len(named) == len(names) else {}
        finally:
            spm.unload_spm_weights()
    bars = [(name, p, float(gamma[k])) for name, gamma in gammas.items() for k, p in enumerate(prompts)]
    images: dict[str, Any] = {}
    for k, p in enumerate(prompts):
        here = slice(k * len(seeds), (k + 1) * len(seeds))
        images |= {f"{p}, before": before[here], f"{p}, after": after[here]}
    code = script(
        "from functools import partial",
        store.opening(model),
        "from dmkit import shipped" if any(shown_path(p).startswith("shipped.") for p, _ in adapters) else [],
        "from dmkit.adapters import SPM",
        "from dmkit.sampling import generate",
        "from dmkit.schedulers.registry import build",
        f"prompts, seeds = {prompts!r}, {seeds!r}",
        'scheduler = build("ddim", pipe.scheduler.config)',
        f"draw = partial(generate, pipe, scheduler, {steps}, [*seeds] * len(prompts){call_text(**options)})",
        "texts = [prompt for prompt in prompts for _ in seeds]",
        'made = {"before": draw(prompt=texts)}',
        "spm = SPM(pipe)",
        [
            f"spm.load_spm_weights({shown_path(path)}, {name!r})"
            for (path, _), name in zip(adapters, names, strict=True)
        ],
        f"spm.set_adapters({names!r}, {factors!r})",
        f'made["after"] = draw(prompt=texts, call=partial(spm, facilitated_transport={bool(transport)}))',
        "images = {}",
        "for k, prompt in enumerate(prompts):",
        "    for when, all_images in made.items():",
        '        images[f"{prompt}, {when}"] = all_images[k * len(seeds) : (k + 1) * len(seeds)]',
        "print(spm.permeability(prompts))" if bars else [],
    )
    about = provenance(
        model=model,
        prompts=prompts,
        adapters=dict(zip(names, factors, strict=True)),
        transport=bool(transport),
        permeability=[list(bar) for bar in bars],
        sampler="ddim",
        steps=steps,
        seed=seeds[0],
        num_images=len(seeds),
        **options,
    )
    return Outcome(images, about, code, extra=bars)


def shown_path(path: Path) -> str:
    """A path as Python text: found through the package for what ships, the name alone for an upload."""
    path = path.resolve()
    if path.is_relative_to(shipped.HOME.resolve() / "adapters"):
        return f"shipped.path({path.relative_to(shipped.HOME.resolve()).as_posix()!r})"
    parts = path.parts
    return repr(str(Path(*parts[-3:])) if "adapters" in parts[-3:-2] else path.name)
