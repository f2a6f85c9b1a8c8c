"""Scores over data: what was measured, seeds put together."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ....errors import FileFormatError, unknown_name
from .laws import Array

DATA = "D_p"
GROUPS = ("mixture", "D_f")  # a law has coefficients of its own for each of these


@dataclass(frozen=True)
class Curve:
    """Scores y of checkpoints that saw D of pre-training data; a D that comes several times has several
    seeds.

    Attributes:
        D: (n,) rising, distinct.
        y: (n,) the mean over the seeds.
        seeds: (n,) how many there were.
        within: (n,) sums of squares of log y about the mean of their D.
    """

    D: Array
    y: Array
    seeds: Array
    within: Array

    @classmethod
    def of(cls, D: Sequence[float] | Array, y: Sequence[float] | Array) -> Curve:
        """Sorts, and averages what has the same D.

        Raises:
            ValueError: sizes that differ, something that is not a positive finite number, fewer than 3
                distinct D.
        """
        data, scores = (np.asarray(x, dtype=np.float64) for x in (D, y))
        if data.shape != scores.shape or data.ndim != 1:
            raise ValueError(f"D and y must be two rows of one length, got {data.shape} and {scores.shape}.")
        for name, values in (("D", data), ("score", scores)):
            wrong = values[~(np.isfinite(values) & (values > 0))]
            if wrong.size:
                raise ValueError(
                    f"every {name} must be a positive finite number, got {wrong[0]}: a log is taken."
                )
        distinct, index = np.unique(data, return_inverse=True)
        if len(distinct) < 3:
            raise ValueError(f"a law has three coefficients and needs 3 distinct D, got {len(distinct)}.")
        seeds = np.bincount(index).astype(np.float64)
        logs = np.log(scores)
        within = np.bincount(index, (logs - (np.bincount(index, logs) / seeds)[index]) ** 2)
        return cls(distinct, np.bincount(index, scores) / seeds, seeds, within.astype(np.float64))

    def smallest(self, count: int) -> Curve:
        """The points of the `count` smallest D.

        Raises:
            ValueError: `count` is below 3 or above what there are.
        """
        if not 3 <= count <= len(self):
            raise ValueError(f"first must lie between 3 and the {len(self)} distinct D, got {count}.")
        return Curve(*(part[:count] for part in (self.D, self.y, self.seeds, self.within)))

    def __len__(self) -> int:
        return len(self.D)

    @cached_property
    def noise(self) -> float | None:
        """The deviation of log y from seed to seed; None with one seed each."""
        spare = float((self.seeds - 1).sum())
        return math.sqrt(self.within.sum() / spare) if spare else None


def read_csv(path: str | Path, metric: str | None = None) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Reads a table of runs: a row for each fine-tuned checkpoint, columns `D_p`, a score, and perhaps
    `mixture`, `D_f`, `seed` and others.

    Args:
        path: a CSV file with a header.
        metric: the column of the score; may be left out where only one is left that could be it.

    Returns:
        The metric, and the pairs (D_p, score) by curve: one for each `mixture` and `D_f`.

    Raises:
        FileFormatError: no such file, no header, a missing or ambiguous column, a row that is longer than the
            header, or a cell that is not a positive number, with its line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]  # what is beyond the header is under None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read as CSV: {error}") from error
    if not columns or not rows:
        raise FileFormatError(
            f"{path} has no rows; expected a header with {DATA} and a score, and a row a run."
        )
    if DATA not in columns:
        commas = " Columns are separated by commas." if len(columns) == 1 else ""
        raise FileFormatError(f"{path} has no column {DATA}. {unknown_name('column', DATA, columns)}{commas}")
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise FileFormatError(f"{path} has more than one column {', '.join(twice)}.")
    for line, row in rows:
        if None in row:
            raise FileFormatError(f"{path}, line {line}: more cells than the header has columns.")
    others = [name for name in columns if name not in ("", DATA, "seed", *GROUPS)]
    if metric is None:
        if len(others) != 1:
            raise FileFormatError(f"{path}: which column is the score? It has {', '.join(others) or 'none'}.")
        metric = others[0]
    elif metric not in columns:
        raise FileFormatError(f"{path}: {unknown_name('column', metric, others)}")
    curves: dict[str, list[tuple[float, float]]] = {}
    for line, row in rows:
        name = ", ".join(str(row[group]) for group in GROUPS if group in columns) or "runs"
        pair = (_positive(path, line, DATA, row[DATA]), _positive(path, line, metric, row[metric]))
        curves.setdefault(name, []).append(pair)
    return metric, curves


def _positive(path: str | Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise FileFormatError(f"{path}, line {line}: {column} must be a positive number, not {text!r}.")
    return value
