"""A picture of curves and their laws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....errors import MissingExtraError
from .curves import Curve
from .fitting import Fit


def plot(
    fits: Mapping[str, tuple[Curve, Fit]],
    path: str | Path,
    *,
    metric: str = "score",
    to: float | None = None,
    baseline: float | None = None,
    seed: int = 0,
) -> None:
    """Draws measured scores, full where they were fitted and hollow where they were held out, the laws, and
    intervals of 95 %.

    Args:
        fits: all points and the fitted law, by name.
        path: a PNG.
        metric: the name of the score.
        to: the largest D to draw the laws to.
        baseline: the score without pre-training, as a line.
        seed: of the intervals.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "metrics") from error
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, (curve, law)) in enumerate(fits.items()):
        colour = f"C{number % 10}"
        fitted = law.curve.D[-1] >= curve.D
        axes.plot(curve.D[fitted], curve.y[fitted], "o", color=colour, label=name)
        axes.plot(curve.D[~fitted], curve.y[~fitted], "o", color=colour, mfc="none")
        grid = np.geomspace(curve.D[0], max(curve.D[-1], to or 0), 60)
        axes.plot(grid, np.exp(law.log_value(grid)), color=colour, lw=1)
        if law.freedom > 0:
            lower, upper = law.interval(grid, seed=seed)
            axes.fill_between(grid, lower, upper, color=colour, alpha=0.12, lw=0)
    if baseline is not None:
        axes.axhline(baseline, color="grey", ls="--", lw=1, label="without pre-training")
    # Intervals of few points are wide beyond measure; the scores set the picture's height.
    heights = np.concatenate([np.r_[curve.y, np.exp(law.log_value(curve.D))] for curve, law in fits.values()])
    ends = [float(np.exp(law.log_value(to))) for _, law in fits.values()] if to else []
    low, high = min([*heights, *ends]), max([*heights, *ends])
    axes.set_ylim(max(0.0, low - 0.3 * (high - low)), high + 0.3 * (high - low))
    axes.set(xlabel="data seen in pre-training", ylabel=metric, xscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")
