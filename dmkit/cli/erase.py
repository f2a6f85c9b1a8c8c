"""`dmkit erase`: take a concept out of a text-to-image model, and see what that did."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from . import _options as options

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(help="Erase a concept with a small file (SPM), or with a baseline.", no_args_is_help=True)


def _existing(paths: list[Path] | None) -> list[Path] | None:
    """The paths, and for what is none the shipped adapter of that name."""
    return None if paths is None else [path if path.exists() else _shipped(path) for path in paths]


def _shipped(name: Path) -> Path:
    from .. import shipped

    try:
        return Path(shipped.path(f"adapters/{name.as_posix().removeprefix('adapters/')}"))
    except ValueError as error:
        known = ", ".join(sorted(folder.name for folder in Path(shipped.path("adapters")).glob("*/")))
        raise typer.BadParameter(f"path '{name}' does not exist. Shipped adapters: {known}.") from error


Files: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--spm",
        callback=_existing,
        help="An adapter: a file, its folder, or the name of a shipped one. May be given several times.",
    ),
]
Factors: TypeAlias = Annotated[
    list[float] | None,
    typer.Option("--factor", help="Strength of each adapter, in their order; 1 by default."),
]
Transport: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--transport/--no-transport",
        help="Facilitated transport: each adapter acts as far as the prompt is about its concept.",
    ),
]
Permeability: TypeAlias = Annotated[
    str, typer.Option(help="linear, as the paper has it; or squared, as the released code acts.")
]
Score: TypeAlias = Annotated[
    str, typer.Option(help="How near a prompt is: clipcos, tokenuni, or clipcos_tokenuni, the larger one.")
]
Steps: TypeAlias = Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")]
Guidance: TypeAlias = Annotated[float, typer.Option(help="Guidance scale.")]
Sampler: TypeAlias = Annotated[str, typer.Option(help="A sampler's name; see `dmkit models`.")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def train(context: typer.Context) -> None:
    """Train an adapter, or edit the model with a baseline; the flags are those of scripts/train_spm.py.

    Examples:

        dmkit erase train --config scripts/recipes/spm-emoji.yaml --target heart

        dmkit erase train --method uce --pretrained_model_name_or_path emoji --target "a heart"

        dmkit erase train --help
    """
    from ..adapters.erasing.configure import erase, parse

    erase(*parse(context.args, description="Erases concepts from a text-to-image model by SPM, ESD or UCE."))


@app.command()
def generate(
    model: options.Model,
    prompt: Annotated[list[str], typer.Option(help="Text; may be given several times.", show_default=False)],
    spm: Files = None,
    factor: Factors = None,
    transport: Transport = True,
    permeability: Permeability = "linear",
    score: Score = "clipcos_tokenuni",
    num_images: Annotated[int, typer.Option(min=1, max=1024, help="Images for each prompt.")] = 4,
    scheduler: Sampler = "ddim",
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    negative_prompt: options.Prompt = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs/erase"),
) -> None:
    """Images without and with adapters, of the same prompts and seeds.

    Examples:

        dmkit erase generate emoji --spm adapters/heart --prompt "a red heart" --prompt "a red apple"

        dmkit erase generate emoji --spm heart --spm cat --factor 1 --factor 0.5
        --prompt "a cat"
    """
    from ..images import grid, save_png, side_by_side, to_pil
    from ..records import provenance
    from ..zoo.opening import open_pipeline
    from . import _work as work

    if not spm:
        raise ValueError("--spm is needed: an adapter's file or folder, such as adapters/heart.")
    _factors(spm, factor)
    read = _read(spm)
    pipe = open_pipeline(model, device)
    draw = _drawing(pipe, scheduler, steps, guidance_scale, negative_prompt)
    prompts = [text for text in prompt for _ in range(num_images)]
    seeds = [seed + k for _ in prompt for k in range(num_images)]
    before = draw(prompts, seeds)
    adapters = _load(pipe, read, _factors(spm, factor))
    call = partial(adapters, facilitated_transport=transport, permeability=permeability, score=score)
    after = draw(prompts, seeds, call)
    shares = adapters.permeability(prompt, score=score) if transport else {}
    folder = work.fresh_folder(out)
    about = provenance(
        model=model,
        adapters=[str(path) for path in spm],
        factors=factor,
        transport=transport,
        permeability=permeability,
        score=score,
        sampler=scheduler,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
    )
    for when, images in (("before", before), ("after", after)):
        for k, image in enumerate(images):
            own = {"prompt": prompts[k], "seed": seeds[k]}
            save_png(to_pil(image), folder / when / f"{k:04d}.png", {**about, **own})
    scale = max(1, 64 // before.shape[-1])
    sheets = [grid(images, columns=num_images, scale=scale) for images in (before, after)]
    save_png(side_by_side(sheets, ["before", "after"]), folder / "comparison.png", about)
    for k, text in enumerate(prompt):
        acting = ", ".join(f"{name} {float(share[k]):.2f}" for name, share in shares.items())
        typer.echo(f"{text}: {acting or 'every adapter in full'}")
    typer.echo(f"{len(prompts)} images without and with {', '.join(adapters.metadata)}; see {folder}")


@app.command()
def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            callback=lambda path: path if path.exists() else _shipped(path),
            help="An adapter's file, its folder, or the name of a shipped one.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="A model to check it against, and to weigh prompts with.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text; may be given several times.")] = None,
    score: Score = "clipcos_tokenuni",
) -> None:
    """What is in an adapter's file; with a model, whether it fits and how much of it acts on a prompt.

    Examples:

        dmkit erase inspect heart

        dmkit erase inspect adapters/heart --model emoji --prompt "a red heart" --prompt "a pizza"
    """
    from ..zoo.opening import open_pipeline

    path = adapter_file(file)
    ((name, weights),) = _read([path]).items()
    metadata = weights.metadata
    size = sum(part.numel() for layer in weights.layers.values() for part in (layer.down, layer.up))
    typer.echo(f"{path}: {path.stat().st_size / 1000:.1f} kB")
    typer.echo(f"  layers {len(weights.layers)}, rank {weights.rank}, parameters {size:,}")
    for entry in ("targets", "surrogate", "base_model", "eta", "anchoring", "iterations", "seed"):
        value = getattr(metadata, entry)
        if entry == "targets":
            value = ", ".join(value) or "not said; no prompt can open it"
        if value not in (None, ""):
            typer.echo(f"  {entry.replace('_', ' ')}: {value}")
    if prompt and model is None:
        raise ValueError("--prompt needs --model: its text encoder weighs the prompt.")
    if model is None:
        return
    adapters = _load(open_pipeline(model, None), {name: weights}, [1.0])
    typer.echo(f"  fits {model}")
    if prompt:
        for text, share in zip(prompt, adapters.permeability(prompt, score=score)[name], strict=True):
            typer.echo(f"  {float(share):.3f} acts on {text!r}")


@app.command()
def merge(
    spm: Annotated[
        list[Path],
        typer.Argument(callback=_existing, help="Adapters: files, folders, or names of shipped ones."),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    factor: Factors = None,
) -> None:
    """Several adapters as one file of the sum of their ranks, exactly; for tools that take one LoRA.

    Example:

        dmkit erase merge adapters/heart adapters/cat --factor 1 --factor 0.5 --out both.safetensors
    """
    from ..adapters import merge_spms, read_spm, save_spm

    if out.suffix != ".safetensors":
        raise ValueError(f"--out takes a name that ends in .safetensors, not {out}.")
    merged = merge_spms([read_spm(adapter_file(path)) for path in spm], _factors(spm, factor))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_spm(merged, out)
    typer.echo(f"{out}: rank {merged.rank}, erases {', '.join(merged.metadata.targets)}")


@app.command()
def evaluate(
    model: options.Model,
    concept: Annotated[
        list[str],
        typer.Option(
            help="The erased concept by the judge's name; several times for several.", show_default=False
        ),
    ],
    spm: Files = None,
    factor: Factors = None,
    edited: Annotated[
        str | None, typer.Option(help="Instead of adapters: a pipeline that was edited, as ESD and UCE do.")
    ] = None,
    transport: Transport = True,
    permeability: Permeability = "linear",
    score: Score = "clipcos_tokenuni",
    surrogate: Annotated[str | None, typer.Option(help="What the concept should have become.")] = None,
    prompts: Annotated[
        str, typer.Option(help="Text file, one prompt a line, or captions of a data set, NAME:SPLIT.")
    ] = "emoji:test",
    num_images: Annotated[int, typer.Option(min=10, max=10_000, help="Images of the concept.")] = 100,
    num_others: Annotated[int, typer.Option(min=10, max=10_000, help="Images of other prompts.")] = 200,
    evaluator: Annotated[
        str, typer.Option(help="Zoo name or folder of the judge of prompts.")
    ] = "emoji-evaluator",
    scheduler: Sampler = "ddim",
    steps: Steps = 20,
    guidance_scale: Guidance = 3.0,
    negative_prompt: options.Prompt = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    out: Annotated[Path, typer.Option(help="Folder for table and pictures.")] = Path("outputs/erase"),
) -> None:
    """Measure an erasure: is the concept gone, and what happened to the rest?

    Prompts that name the concept measure the first, all others the second, on the same seeds before and
    after.

    Examples:

        dmkit erase evaluate emoji --spm adapters/heart --concept heart

        dmkit erase evaluate emoji --edited outputs/esd-heart --concept heart --num-others 400
    """
    from .._files import save_json
    from ..adapters.evaluating import evaluate_erasure
    from ..evaluation import load_evaluator, load_prompts
    from ..images import grid, save_png, side_by_side
    from ..records import provenance
    from ..zoo.opening import open_pipeline
    from . import _work as work

    if bool(spm) == bool(edited):
        raise ValueError("Give either --spm, an adapter, or --edited, a pipeline.")
    _factors(spm or [], factor)
    captions = load_prompts(prompts)
    judge = load_evaluator(evaluator)
    pipe = open_pipeline(model, device)
    before = _drawing(pipe, scheduler, steps, guidance_scale, negative_prompt)
    if edited:
        other = open_pipeline(edited, device)
        after = _drawing(other, scheduler, steps, guidance_scale, negative_prompt)
    else:
        adapters = _load(open_pipeline(model, device), _read(spm or []), _factors(spm or [], factor))
        call = partial(adapters, facilitated_transport=transport, permeability=permeability, score=score)
        drawing = _drawing(adapters.pipe, scheduler, steps, guidance_scale, negative_prompt)
        after = partial(drawing, call=call)
    found = evaluate_erasure(
        before,
        after,
        judge.to(pipe.device),
        concept,
        captions,
        num_images=num_images,
        num_others=num_others,
        surrogate=surrogate,
        seed=seed,
    )
    folder = work.fresh_folder(out)
    about = provenance(
        model=model,
        concepts=concept,
        adapters=[str(path) for path in spm or []] or None,
        factors=factor,
        edited=edited,
        transport=transport if spm else None,
        permeability=permeability if spm else None,
        prompts=prompts,
        num_images=num_images,
        num_others=num_others,
        sampler=scheduler,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
    )
    save_json(folder / "erasure.json", {**about, "figures": found.figures})
    for name, pair in (
        ("concept", (found.before, found.after)),
        ("others", (found.others_before, found.others_after)),
    ):
        sheets = [grid(images[:36], scale=max(1, 64 // images.shape[-1])) for images in pair]
        save_png(side_by_side(sheets, ["before", "after"]), folder / f"{name}.png", about)
    width = max(map(len, found.figures))
    for name, value in found.figures.items():
        typer.echo(f"{name:{width}s}  {value:.4g}")
    typer.echo(f"table and pictures are in {folder}")


def adapter_file(path: Path) -> Path:
    """An adapter's file: the path itself, or the one safetensors file of a folder.

    Raises:
        ValueError: a folder that holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"{path} should hold one .safetensors file; there: {names}.")
    return found[0]


def _factors(files: list[Path], factors: list[float] | None) -> list[float]:
    if factors and len(factors) != len(files):
        raise ValueError(f"{len(files)} adapters need as many --factor, not {len(factors)}.")
    return factors or [1.0] * len(files)


def _read(files: list[Path]) -> dict[str, Any]:
    """Adapters, each under its file's name."""
    from torch import nn

    from ..adapters import read_spm

    found: dict[str, Any] = {}
    for k, path in enumerate(map(adapter_file, files)):
        name = re.sub(r"[^\w-]", "_", path.stem)
        # "train" is a method of the container that keeps adapters by name.
        name += "_" if hasattr(nn.ModuleDict(), name) else ""
        found[f"{name}_{k}" if name in found else name] = read_spm(path)
    return found


def _load(pipe: Any, read: dict[str, Any], factors: list[float]) -> Any:
    """The pipeline's adapters, all active."""
    from ..adapters import SPM

    adapters = SPM(pipe)
    for name, weights in read.items():
        adapters.load_spm_weights(weights, name)
    adapters.set_adapters(list(read), factors)
    return adapters


def _drawing(
    pipe: Any, scheduler: str, steps: int, guidance_scale: float, negative_prompt: str | None
) -> Any:
    """(prompts, seeds) -> images, in batches, with a progress bar."""
    import torch

    from ..evaluation import check_finite
    from ..sampling import generate as sample
    from ..schedulers.registry import build, check_steps
    from . import _work as work

    if "tokenizer" not in pipe.components:
        raise ValueError(f"{type(pipe).__name__} takes no prompts; erasing needs a text-to-image model.")
    sampler = build(scheduler, pipe.scheduler.config)
    check_steps(scheduler, sampler, steps)
    text = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    text = {key: value for key, value in text.items() if value is not None}

    def draw(prompts: list[str], seeds: Any, call: Any = None) -> Tensor:
        parts = []
        with work.progress(len(prompts), "sampling") as advance:
            for start in range(0, len(prompts), 64):
                here = slice(start, start + 64)
                count = len(prompts[here])
                with work.delivering(pipe, sampler):
                    images = sample(
                        pipe,
                        sampler,
                        steps,
                        seeds[here],
                        prompt=prompts[here],
                        on_step=partial(_report, advance, count),
                        call=call,
                        **text,
                    )
                parts.append(check_finite(images, f"{scheduler} at {steps} steps"))
        return torch.cat(parts)

    return draw


def _report(advance: Any, count: int, _done: int, total: int) -> None:
    """One step of so many images."""
    advance(count / total)
