"""Markdown of result files, and a plot that several have."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean} (one seed)"


def number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(v)}" for key, v in value.items())
    if isinstance(value, list):
        return " / ".join(number(v) for v in value)
    return "" if value is None else str(value)


def head(content: dict[str, Any], title: str) -> str:
    made = ", ".join(f"{k} {v}" for k, v in content["environment"].items())
    return f"# {title}\n\n{content['about'].get('what', '')}\n\nMade with {made}.\n\n"


def few(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± deviation, the mean in so many digits."""
    mean = f"{statistics.mean(values):.{digits}g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def beyond(values: Sequence[float], doubt: str) -> bool | str:
    """Whether a difference is above 0; where it is by no more than its deviation over seeds, or of one seed,
    `doubt`.
    """
    mean = statistics.mean(values)
    if mean > 0 and not (len(values) > 1 and mean > statistics.stdev(values)):
        return doubt
    return mean > 0


def seed_dots(axis: Any, groups: Mapping[str, Sequence[float]], title: str, label: str) -> None:
    """Draws a dot a seed and a bar at the mean, a row a group, the first on top."""
    for place, values in enumerate(groups.values()):
        axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6)
        axis.plot([statistics.mean(values)], [place], "|", color="black", markersize=16)
    axis.set(
        title=title, xlabel=f"{label}; dots are seeds", yticks=range(len(groups)), yticklabels=list(groups)
    )
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
