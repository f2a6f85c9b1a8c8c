"""`dmkit evaluate`: a table of metrics for one model, several samplers and step counts."""

from __future__ import annotations

from itertools import cycle, islice, product
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as options


def evaluate(
    model: options.Model,
    schedulers: Annotated[str, typer.Option(help="Samplers with commas between them.")] = "ddim,ts-ddim",
    steps: Annotated[str, typer.Option(help="Step counts with commas between them.")] = "10,20",
    num_images: Annotated[int, typer.Option(min=50, max=100_000, help="Samples for each cell.")] = 2000,
    reference: options.Reference = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Of frechet, kid, precision_recall, diversity; with --prompts also of prompt_score, "
            "retrieval, concepts."
        ),
    ] = "frechet,kid",
    seed: options.Seed = 0,
    prompt: options.Prompt = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Text file, one prompt a line, or the captions of a data set, NAME:SPLIT. Image k is of "
            "prompt k; a short list starts over."
        ),
    ] = None,
    guidance_scale: Annotated[
        str | None, typer.Option(help="For text-to-image models; several with commas between them.")
    ] = None,
    evaluator: Annotated[
        str, typer.Option(help="Zoo name or folder of the judge of prompts.")
    ] = "emoji-evaluator",
    time_shift_window: options.TimeShiftWindow = None,
    time_shift_cutoff: options.TimeShiftCutoff = None,
    setting: options.Set = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the plot.")] = Path("outputs/evaluate"),
) -> None:
    """Measure samplers against real images: a Markdown table, JSON, and a plot.

    Fréchet distances compare only at equal numbers of images.

    Examples:

        dmkit evaluate fashion --schedulers ddim,ts-ddim --steps 5,10 --num-images 1000

        dmkit evaluate path/to/pipeline --reference path/to/images --schedulers ddim,dpm++ --steps 10

        dmkit evaluate emoji --prompts emoji:test --guidance-scale 1,3,5 --metrics prompt_score,retrieval
    """
    from .. import zoo
    from .._files import atomic_file, save_json
    from ..evaluation import Reference, load_evaluator, load_prompts, quality, sorted_metrics
    from ..metrics.prompts import check_retrieval
    from ..records import provenance
    from ..schedulers.registry import build_all, check_steps
    from ..zoo.opening import open_pipeline
    from . import _work as work

    # All that can be refused is refused before the first image is sampled.
    require_matplotlib()
    chosen = options.settings(
        setting, time_shift_window=time_shift_window, time_shift_cutoff=time_shift_cutoff
    )
    wanted, counts = options.names(metrics), options.numbers(steps, "--steps")
    about_images, about_prompts = sorted_metrics(wanted)
    scales = (
        [{}] if guidance_scale is None else [{"guidance_scale": s} for s in guidance_scales(guidance_scale)]
    )
    if prompt and prompts:
        raise ValueError("--prompt is one text for all images, --prompts a text for each: give one of them.")
    if about_prompts and prompts is None:
        raise ValueError(f"--prompts is needed for {', '.join(about_prompts)}.")
    text: str | list[str] | None = prompt
    if prompts is not None:
        text = list(islice(cycle(load_prompts(prompts)), num_images))
        if "retrieval" in wanted:
            check_retrieval(text)
    pipe = open_pipeline(model, device)
    samplers = build_all(options.names(schedulers), pipe.scheduler.config, **chosen)
    cells = list(product(counts, samplers.items(), scales))
    for count, (name, sampler), _ in cells:
        check_steps(name, sampler, count)
    against = Reference.load(reference or zoo.reference(model), pipe) if about_images else None
    judge = load_evaluator(evaluator).to(pipe.device) if about_prompts else None
    folder = work.fresh_folder(out)
    about = provenance(
        model=model,
        reference=against and against.name,
        num_images=num_images,
        seed=seed,
        prompt=prompt,
        prompts=prompts,
        evaluator=evaluator if judge else None,
        settings=chosen or None,
    )
    rows: list[dict[str, Any]] = []
    with work.progress(len(cells) * num_images, "sampling") as advance:
        for count, (name, sampler), scale in cells:
            with work.delivering(pipe, sampler):
                figures = quality(
                    pipe,
                    sampler,
                    count,
                    num_images,
                    against,
                    metrics=wanted,
                    seed=seed,
                    batch_size=batch_size,
                    prompt=text,
                    evaluator=judge,
                    on_image=advance,
                    **scale,
                )
            rows.append({"sampler": name, "steps": count, **scale, **figures})
            save_json(folder / "results.json", {"about": about, "rows": rows})
    table = markdown(rows)
    with atomic_file(folder / "results.md") as draft:
        draft.write_text(table, encoding="utf-8")
    with atomic_file(folder / "results.png") as draft:
        plot(rows, draft)
    typer.echo(table)
    typer.echo(f"results.json, results.md and results.png are in {folder}")


def guidance_scales(text: str) -> list[float]:
    """`1,7.5` -> [1.0, 7.5].

    Raises:
        ValueError: something that is not a number of at least 0.
    """
    try:
        values = [float(part) for part in options.names(text)]
    except ValueError:
        values = []
    if not values or not all(0 <= value < float("inf") for value in values):
        raise ValueError(
            f"--guidance-scale takes numbers of at least 0, with commas between them, not {text!r}."
        )
    return values


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of figures as a Markdown table; the columns are those of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def require_matplotlib() -> None:
    """Raises MissingExtraError where matplotlib is not installed."""
    import importlib.util

    from ..errors import MissingExtraError

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "metrics")


def line_of(row: dict[str, Any]) -> str:
    """Which line of a plot a row belongs to."""
    scale = row.get("guidance_scale")
    return row["sampler"] if scale is None else f"{row['sampler']}, guidance {scale:g}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Each metric over the number of steps, a line for each sampler and guidance scale, with its standard
    error and, where it is known, the real images' own value.
    """
    from matplotlib.figure import Figure

    beside = ("sampler", "steps", "guidance_scale"), ("_stderr", "_reference")
    metrics = [key for key in rows[0] if key not in beside[0] and not key.endswith(beside[1])]
    counts = sorted({row["steps"] for row in rows})
    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for name in dict.fromkeys(map(line_of, rows)):
            mine = sorted((row for row in rows if line_of(row) == name), key=lambda row: row["steps"])
            bars = [row.get(f"{metric}_stderr", 0.0) for row in mine]
            axes.errorbar(
                [row["steps"] for row in mine], [row[metric] for row in mine], bars, marker="o", label=name
            )
        if f"{metric}_reference" in rows[0]:
            axes.axhline(rows[0][f"{metric}_reference"], color="grey", linestyle="--", label="real images")
        axes.set(xlabel="steps", ylabel=metric, xscale="log")
        axes.set_xticks(counts, labels=counts)
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=150, format="png")
