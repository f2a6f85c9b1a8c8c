"""The tab Invert & edit: an image to noise and back by BDIA and by DDIM, and under another prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from ..data.pictures import fit
from ..records import provenance
from . import limits
from .jobs import Job
from .outcome import Outcome, call_text, script
from .store import ModelStore

METHODS = ("bdia", "edict", "ddim")
STEPS = (2, limits.STEPS[1])
COLUMNS = ("what", "largest error", "PSNR in dB", "bit for bit")


class ReportedSteps:
    """Stands in the place of a pipeline's progress bar and tells a job of each step."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> ReportedSteps:
        self.iterable = None if iterable is None else list(iterable)
        self.total, self.done = total or len(self.iterable or [1]), 0
        return self

    def update(self, count: int = 1) -> None:
        self.done += count
        self.job.step(self.done, self.total)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable or []:
            yield item
            self.update()

    def __enter__(self) -> ReportedSteps:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def prepared(pipe: Any, picture: Image.Image) -> Image.Image:
    """A picture at the model's size: the middle square, resized.

    Raises:
        ValueError: the model's images are not square, or too large.
    """
    from ..evaluation import image_size

    channels, size = image_size(pipe)
    if size is None:
        raise ValueError("This model takes images of any size; the demo needs one with a size of its own.")
    if size[0] != size[1]:
        raise ValueError(f"Images are cropped to squares; this model's are {size[0]}x{size[1]}.")
    limits.pixels(*size, 1)
    return fit(picture, size[0], channels)


def _opening(store: ModelStore, model: str, picture: str) -> list[str]:
    return [
        store.opening(model),
        "from dmkit.data.pictures import fit, open_picture",
        "from dmkit.evaluation import image_size",
        "channels, (side, _) = image_size(pipe)",
        f"picture = fit(open_picture({picture!r}), side, channels)",
    ]


def inversion(
    store: ModelStore,
    job: Job,
    *,
    model: Any,
    picture: Image.Image,
    name: str = "image.png",
    prompt: Any = "",
    steps: Any = 20,
    guidance_scale: Any = 1.0,
) -> Outcome:
    """An image inverted and brought back by DDIM and by BDIA, with the errors of both.

    Args:
        store: the models.
        job: told of each step.
        model: a name of the store.
        picture: any picture; it is cropped and resized.
        name: what the code calls the picture's file.
        prompt: what it shows, for text-to-image models; may be empty.
        steps: levels of the noise grid.
        guidance_scale: in both directions, for text-to-image models.

    Raises:
        ValueError: an input out of bounds, or a model that cannot be inverted.
        FileFormatError: a model that cannot be loaded.
        Cancelled: stopped.
    """
    import torch

    from ..metrics import pixel_error
    from ..schedulers import decode, encode, invert, reconstruct

    model = limits.choice("model", model, store.names())
    steps = limits.whole("Steps", steps, STEPS)
    options: dict[str, Any] = {}
    if store.takes_text(model):
        options["prompt"] = limits.text("The prompt", prompt or "", required=False)
        options["guidance_scale"] = limits.number("Guidance", guidance_scale, limits.GUIDANCE)
    rows = []
    # Pixel-space models are inverted with a hook on the network.
    with store.borrow(model, alone=True, check=job.check) as pipe:
        pipe.progress_bar = ReportedSteps(job)
        z_0 = encode(pipe, prepared(pipe, picture))
        images = {"original": decode(pipe, z_0).float().clamp(-1, 1).cpu()}
        for k, method in enumerate(("ddim", "bdia")):
            job.part(2 * k, 4, f"{method}, up")
            pair = invert(pipe, latents=z_0, num_inference_steps=steps, method=method, **options)
            job.part(2 * k + 1, 4, f"{method}, down")
            returned = reconstruct(pipe, pair)
            images[method] = returned.image.float().clamp(-1, 1).cpu()
            found = pixel_error(z_0, returned.latents)
            exact = torch.equal(z_0.to(returned.latents.dtype), returned.latents)
            rows.append(
                [method, f"{found['max_abs']:.3g}", f"{found['psnr_db']:.1f}", "yes" if exact else "no"]
            )
    code = script(
        _opening(store, model, name),
        "from dmkit.schedulers import decode, encode, invert, reconstruct",
        "latents = encode(pipe, picture)",
        'images = {"original": decode(pipe, latents)}',
        'for method in ("ddim", "bdia"):',
        f"    pair = invert(pipe, latents=latents, method=method, num_inference_steps={steps}"
        f"{call_text(**options)})",
        "    returned = reconstruct(pipe, pair)",
        "    images[method] = returned.image",
        "    print(method, (returned.latents - latents).abs().max())",
    )
    about = provenance(model=model, image=name, steps=steps, **options, errors={r[0]: r[1:] for r in rows})
    return Outcome(images, about, code, rows, COLUMNS)


def editing(
    store: ModelStore,
    job: Job,
    *,
    model: Any,
    picture: Image.Image,
    name: str = "image.png",
    source_prompt: Any,
    target_prompt: Any,
    steps: Any = 20,
    guidance_scale: Any = 3.0,
    strength: Any = 0.8,
    method: Any = "bdia",
    keep: Any = False,
) -> Outcome:
    """An image under another prompt, beside what comes back under its own.

    Args:
        store, job, model, picture, name: as for `inversion`.
        source_prompt: what the picture shows.
        target_prompt: what it shall show.
        steps: levels of the noise grid.
        guidance_scale: of the inversion and the edit.
        strength: the part of the grid to climb; less keeps more.
        method: `bdia`, or a baseline.
        keep: change only where the prompts pull apart.

    Raises:
        ValueError: an input out of bounds, or a model without prompts.
        FileFormatError: a model that cannot be loaded.
        Cancelled: stopped.
    """
    import torch

    from ..metrics import pixel_error
    from ..schedulers import decode, edit_image, encode

    model = limits.choice("model that takes prompts", model, store.names(text=True))
    source = limits.text("What the picture shows", source_prompt)
    target = limits.text("What it shall show", target_prompt)
    options = {
        "num_inference_steps": limits.whole("Steps", steps, STEPS),
        "guidance_scale": limits.number("Guidance", guidance_scale, limits.GUIDANCE),
        "strength": limits.number("Strength", strength, limits.STRENGTH),
        "method": limits.choice("method", method, METHODS),
        "mask": "auto" if keep else None,
    }
    with store.borrow(model, alone=True, check=job.check) as pipe:
        pipe.progress_bar = ReportedSteps(job)
        fitted = prepared(pipe, picture)
        job.part(0, 1, "the edit")
        done = edit_image(pipe, fitted, source, target, **options)
        # What the autoencoder alone makes of the picture is what a perfect inversion gives back.
        z_0 = encode(pipe, fitted)
        found = {
            "original": decode(pipe, z_0),
            "reconstruction": done.reconstruction.image,
            "edit": done.edit.image,
        }
    exact = torch.equal(z_0.to(done.reconstruction.latents.dtype), done.reconstruction.latents)
    rows = []
    for what in ("reconstruction", "edit"):
        error = pixel_error(found["original"], found[what])
        same = ("yes" if exact else "no") if what == "reconstruction" else ""
        rows.append([what, f"{error['max_abs']:.3g}", f"{error['psnr_db']:.1f}", same])
    images = {what: image.float().clamp(-1, 1).cpu() for what, image in found.items()}
    code = script(
        _opening(store, model, name),
        "from dmkit.schedulers import decode, edit_image, encode",
        f"done = edit_image(pipe, picture, {source!r}, {target!r}{call_text(**options)})",
        "images = {",
        '    "original": decode(pipe, encode(pipe, picture)),',
        '    "reconstruction": done.reconstruction.image,',
        '    "edit": done.edit.image,',
        "}",
    )
    about = provenance(
        model=model,
        image=name,
        source_prompt=source,
        target_prompt=target,
        **options,
        errors={r[0]: r[1:3] for r in rows},
    )
    return Outcome(images, about, code, rows, COLUMNS)
