"""Markdown of result files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
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
