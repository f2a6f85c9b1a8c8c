"""`dmkit scaling`: how a score grows with data, and whether more of it is worth its compute."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from ..auxiliary.scaling.downstream_scaling import Diagnosis
    from ..auxiliary.scaling.downstream_scaling.laws import Law

app = typer.Typer(help="Fit scaling laws to measured scores.", no_args_is_help=True)


class Kind(str, Enum):
    """For scores that rise with data, and for errors that fall with it."""

    log = "log"
    power = "power"


Table: TypeAlias = Annotated[
    Path,
    typer.Argument(
        help="CSV with a row a run: columns D_p (data seen), a score, perhaps mixture, D_f, seed.",
        show_default=False,
    ),
]
Metric: TypeAlias = Annotated[
    str | None, typer.Option(help="Column of the score; may be left out if there is one.", show_default=False)
]
Laws: TypeAlias = Annotated[
    Kind, typer.Option(help="log: scores that rise. power: cross-entropy, Fréchet distance; they fall.")
]
First: TypeAlias = Annotated[
    int, typer.Option("--fit-first", min=3, help="The law of this many smallest D is checked on the others.")
]
Baseline: TypeAlias = Annotated[
    float | None, typer.Option(help="Score without pre-training.", show_default=False)
]
Noise: TypeAlias = Annotated[
    float,
    typer.Option(min=1e-6, help="Relative deviation of a score by chance, where there is one seed only."),
]


@app.command("fit")
def fit(
    table: Table,
    metric: Metric = None,
    law: Laws = Kind.log,
    fit_first: First = 4,
    predict: Annotated[
        list[float] | None, typer.Option(help="D to predict the score at; may be given several times.")
    ] = None,
    cross_entropy: Annotated[
        str | None, typer.Option(help="Column of cross-entropy, to be compared with the score.")
    ] = None,
    baseline: Baseline = None,
    noise: Noise = 0.01,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw into.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write into.", show_default=False)] = None,
) -> None:
    """Fit a law to every curve of a table; say whether to go on, to stop or to change the data.

    Examples:

        dmkit scaling fit results.csv --plot out.png

        dmkit scaling fit runs.csv --metric bleu --fit-first 4 --predict 1e11 --cross-entropy ce
    """
    import numpy as np

    from .._files import save_json
    from ..auxiliary.scaling import downstream_scaling as scaling
    from ..records import provenance

    _check_places(predict, "--predict")
    metric, curves = scaling.read_csv(table, metric)
    entropies = scaling.read_csv(table, cross_entropy)[1] if cross_entropy else {}
    found: dict[str, Any] = {}
    drawn = {}
    for name, pairs in curves.items():
        D, y = zip(*pairs, strict=True)
        entropy = [value for _, value in entropies[name]] if entropies else None
        try:
            said = scaling.diagnose(
                *(D, y),
                law=_law(law),
                first=fit_first,
                cross_entropy=entropy,
                baseline=baseline,
                noise=noise,
            )
        except ValueError as error:
            raise ValueError(f"{table}, {name}: {error}") from error
        found[name] = _figures(said, predict or [])
        typer.echo(_text(name, found[name]))
        if said.fit is not None:
            drawn[name] = (said.fit.curve, scaling.fit(_law(law), D, y, first=min(fit_first, len(set(D)))))
    if plot is not None:
        if not drawn:
            raise ValueError(f"{table} has no curve with 3 distinct D to draw.")
        far = float(np.max(predict)) if predict else None
        scaling.plot(drawn, plot, metric=metric, to=far, baseline=baseline)
    if out is not None:
        about = provenance(table=str(table), metric=metric, law=law.value, baseline=baseline, noise=noise)
        save_json(out, {"about": about, "curves": found})


@app.command("compare")
def compare(
    table: Table,
    at: Annotated[float, typer.Option(help="D to compare at.", show_default=False)],
    metric: Metric = None,
    law: Laws = Kind.log,
    fit_first: First = 4,
    ceiling: Annotated[
        float | None, typer.Option(help="Largest score that the metric has, such as 100.", show_default=False)
    ] = None,
    baseline: Baseline = None,
    noise: Noise = 0.01,
) -> None:
    """Order the curves of a table by the score that they are expected to reach.

    Example:

        dmkit scaling compare runs.csv --metric bleu --at 1e11 --ceiling 100
    """
    from ..auxiliary.scaling import downstream_scaling as scaling

    _check_places([at], "--at")
    _, curves = scaling.read_csv(table, metric)
    split = {name: tuple(zip(*pairs, strict=True)) for name, pairs in curves.items()}
    options = {"law": _law(law), "first": fit_first, "baseline": baseline, "noise": noise}
    for one in scaling.compare(split, at, ceiling=ceiling, **options):  # type: ignore[arg-type]
        score = "not to be extrapolated" if one.score is None else f"{one.score:.4g}"
        ends = "" if one.interval is None else f" [{one.interval[0]:.4g}, {one.interval[1]:.4g}]"
        typer.echo(f"{one.name}: {score}{ends}; {one.diagnosis.status}. {one.diagnosis.reason}")


def _check_places(places: list[float] | None, option: str) -> None:
    for place in places or []:
        if not 0 < place < float("inf"):
            raise ValueError(f"{option} takes a positive number, not {place:g}.")


def _law(kind: Kind) -> Law:
    from ..auxiliary.scaling.downstream_scaling import LogLaw, PowerLaw

    return LogLaw() if kind is Kind.log else PowerLaw()


def _figures(said: Diagnosis, places: list[float]) -> dict[str, Any]:
    """A diagnosis as JSON has it, with predictions."""
    figures: dict[str, Any] = {"status": said.status, "action": said.action, "reason": said.reason}
    figures["notes"] = said.notes
    if said.fit is None:
        return figures
    figures |= {"trend": said.trend, "held_out": said.held_out, "coefficients": said.fit.coefficients}
    spare = said.fit.freedom > 0
    if spare:
        figures["intervals"] = said.fit.coefficient_intervals()
    figures["predictions"] = []
    for place in places:
        score = float(said.fit.predict(place))
        one: dict[str, Any] = {"D": place, "score": None if math.isnan(score) else score}
        if spare and one["score"] is not None:
            ends = [float(end) for end in said.fit.interval(place)]
            if not any(map(math.isnan, ends)):
                one["interval"] = ends
        figures["predictions"].append(one)
    return figures


def _text(name: str, figures: dict[str, Any]) -> str:
    lines = [f"{name}: {figures['action']} ({figures['status']}). {figures['reason']}"]
    if "coefficients" in figures:
        ends = figures.get("intervals", {})
        parts = [f"{key} {value:.4g}{_ends(ends.get(key))}" for key, value in figures["coefficients"].items()]
        lines.append(f"  law: {', '.join(parts)}")
    if figures.get("held_out"):
        lines.append(f"  largest log error held out: {figures['held_out']['max']:.3g}")
    for one in figures.get("predictions", []):
        score = "the law has no value" if one["score"] is None else f"{one['score']:.4g}"
        lines.append(f"  at {one['D']:g}: {score}{_ends(one.get('interval'))}")
    return "\n".join(lines + [f"  {note}" for note in figures["notes"]])


def _ends(ends: Any) -> str:
    return "" if ends is None else f" [{ends[0]:.4g}, {ends[1]:.4g}]"
