"""Choosing Time-Shift's window and cut-off by measurement: a grid over a metric of the user's own.

The best pair depends on model, solver and number of steps (Li et al., arXiv 2305.15583, tune them for each).
A minimum over a grid is biased low by the noise of the metric: report the chosen setting on other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Setting = float | str  # a number or "auto"


class TuningRow(NamedTuple):
    """One setting and its score; with window 0 nothing is shifted, and the cut-off does not matter."""

    window: Setting
    cutoff: Setting
    score: float

    @property
    def overrides(self) -> dict[str, Setting]:
        """The setting as config keys."""
        return {"time_shift_window": self.window, "time_shift_cutoff": self.cutoff}


@dataclass(frozen=True)
class TimeShiftTuning:
    """What `tune_time_shift` measured.

    Attributes:
        rows: every setting tried, in the order of the grid.
    """

    rows: tuple[TuningRow, ...]

    @property
    def best(self) -> dict[str, Setting]:
        """Config overrides of the lowest score (of equals the first), for
        `TimeShift…Scheduler.from_config(config, **result.best)`.
        """
        return min(self.rows, key=lambda row: row.score).overrides

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data: `rows`, each a setting and its `score`, and `best`."""
        return {"rows": [{**row.overrides, "score": row.score} for row in self.rows], "best": self.best}

    def table(self) -> str:
        """The rows as a Markdown table, the best one in bold."""
        lines = ["| window | cutoff | score |", "| --- | --- | --- |"]
        for row in self.rows:
            mark = "**" if row.overrides == self.best else ""
            cutoff = "any" if row.window == 0 else f"{row.cutoff}"
            lines.append(f"| {row.window} | {cutoff} | {mark}{row.score:.4g}{mark} |")
        return "\n".join(lines)


def tune_time_shift(
    evaluate: Callable[..., float], windows: Iterable[Setting], cutoffs: Iterable[Setting]
) -> TimeShiftTuning:
    """Evaluates every window with every cut-off; window 0, the plain sampler, only once.

    Args:
        evaluate: called as `evaluate(time_shift_window=w, time_shift_cutoff=c)`; returns a score, lower is
            better (a Fréchet distance, say), made with the same seeds every time.
        windows: values of `time_shift_window`; put 0 among them to see what no shift gives.
        cutoffs: values of `time_shift_cutoff`.

    Raises:
        ValueError: no windows or no cut-offs; a score that is not finite.
    """
    windows, cutoffs = list(windows), list(cutoffs)
    for name, values in (("windows", windows), ("cutoffs", cutoffs)):
        if not values:
            raise ValueError(f"tune_time_shift needs at least one value in {name}, got none.")
    rows = []
    for window in windows:
        for cutoff in cutoffs[:1] if window == 0 else cutoffs:
            score = float(evaluate(time_shift_window=window, time_shift_cutoff=cutoff))
            if not math.isfinite(score):
                raise ValueError(
                    f"evaluate returned {score} for time_shift_window={window}, time_shift_cutoff={cutoff}; "
                    "a score must be finite (samples that diverge call for a smaller window)."
                )
            rows.append(TuningRow(window, cutoff, score))
    return TimeShiftTuning(tuple(rows))
