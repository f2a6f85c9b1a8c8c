"""`dmkit evaluate`: a table of metrics for one model, several samplers and step counts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as options


def evaluate(
    model: options.Model,
    schedulers: Annotated[str, typer.Option(help="Samplers with commas between them.")] = "ddim,ts-ddim",
    steps: Annotated[str, typer.Option(help="Step counts with commas between them.")] = "10,20",
    num_images: Annotated[int, typer.Option(min=50, max=100_000, help="Samples for each cell.")] = 2000,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Data set or image folder to compare with; :SPLIT may follow. Zoo models know their own."
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Of frechet, kid, precision_recall, diversity.")
    ] = "frechet,kid",
    seed: options.Seed = 0,
    prompt: options.Prompt = None,
    time_shift_window: options.TimeShiftWindow = None,
    time_shift_cutoff: options.TimeShiftCutoff = None,
    setting: options.Set = None,
    batch_size: options.BatchSize = 64,
    out: Annotated[Path, typer.Option(help="Folder for the table and the plot.")] = Path("outputs/evaluate"),
) -> None:
    """Measure samplers against real images: a Markdown table, JSON, and a plot.

    Examples:

        dmkit evaluate fashion --schedulers ddim,ts-ddim --steps 5,10 --num-images 1000

        dmkit evaluate path/to/pipeline --reference path/to/images --schedulers ddim,dpm++ --steps 10
    """
    from .. import zoo
    from .._files import save_json
    from ..evaluation import Reference, quality
    from ..schedulers.registry import build

    pipe = zoo.load(model)
    pipe.set_progress_bar_config(disable=True)
    chosen = options.settings(
        setting, time_shift_window=time_shift_window, time_shift_cutoff=time_shift_cutoff
    )
    against = Reference.load(reference or zoo.reference(model), pipe)
    wanted = options.names(metrics)
    samplers = options.names(schedulers)
    counts = options.numbers(steps, "--steps")
    built = {name: build(name, pipe.scheduler.config, ignore_foreign=True, **chosen) for name in samplers}
    rows: list[dict[str, Any]] = []
    with options.progress(len(samplers) * len(counts) * num_images, "sampling") as advance:
        for count in counts:
            for name in samplers:
                figures = quality(
                    pipe,
                    built[name],
                    count,
                    num_images,
                    against,
                    metrics=wanted,
                    seed=seed,
                    batch_size=batch_size,
                    prompt=prompt,
                    on_image=advance,
                )
                rows.append({"sampler": name, "steps": count, **figures})
    folder = options.fresh_folder(out)
    about = options.provenance(
        model=model,
        reference=against.name,
        num_images=num_images,
        seed=seed,
        prompt=prompt,
        settings=chosen or None,
    )
    save_json(folder / "results.json", {"about": about, "rows": rows})
    table = markdown(rows)
    (folder / "results.md").write_text(table, encoding="utf-8")
    plot(rows, folder / "results.png")
    typer.echo(table)
    typer.echo(f"results.json, results.md and results.png are in {folder}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of figures as a Markdown table; the columns are those of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The first figure over the number of steps, a line for each sampler."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    metric = next(key for key in rows[0] if key not in ("sampler", "steps"))
    for name in dict.fromkeys(row["sampler"] for row in rows):
        mine = [row for row in rows if row["sampler"] == name]
        axes.plot([row["steps"] for row in mine], [row[metric] for row in mine], marker="o", label=name)
    axes.set(xlabel="steps", ylabel=metric, xscale="log")
    axes.set_xticks(sorted({row["steps"] for row in rows}), labels=sorted({row["steps"] for row in rows}))
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
