"""Is more of this data worth its compute? The paper's guide (section 3.5), as functions that give a
reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .curves import Curve
from .fitting import Fit, fit, fit_curve
from .laws import Array, Law, LogLaw

ACTIONS = {
    "improving": "continue",
    "plateau": "stop",
    "misaligned": "change the data",
    "off_law": "do not extrapolate",
    "insufficient": "measure more",
    "no_gain": "stop",
}


@dataclass(frozen=True)
class Diagnosis:
    """What a curve says.

    Attributes:
        status: `improving`, `plateau`, `misaligned` (scores do not rise with this data), `off_law` (they
            rise, but not by the law), `insufficient`, or `no_gain` (no better than without pre-training).
        reason: why, with the figures that decided.
        fit: of the law to all points; None if there were too few.
        held_out: the error of the law of the smallest D on the others, with the interval that it should lie
            in.
        trend: of `trend`.
        notes: what else to know, such as a cross-entropy that falls while the score does.
    """

    status: str
    reason: str
    fit: Fit | None = None
    held_out: dict[str, Any] | None = None
    trend: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def action(self) -> str:
        """What to do: continue, stop, change the data, do not extrapolate, measure more."""
        return ACTIONS[self.status]


def trend(y: Sequence[float] | Array, noise: float, *, rises: bool = True) -> dict[str, Any]:
    """Whether scores over growing D get better throughout.

    Args:
        y: (n,) positive scores, in the order of D.
        noise: the deviation of log y by chance.
        rises: whether more is better.

    Returns:
        `tau`, Kendall's; `drop`, the largest fall of log y below the best before it; `falls`, whether that
        is more than two deviations of a difference, 2 √2 · noise.
    """
    from scipy.stats import kendalltau

    logs = np.log(np.asarray(y, dtype=np.float64)) * (1 if rises else -1)
    steps = np.round(logs, 12)  # equal scores are ties
    tau = 0.0 if np.ptp(steps) == 0 else float(kendalltau(np.arange(len(steps)), steps).statistic)
    drop = float((np.maximum.accumulate(logs) - logs).max())
    return {"tau": tau, "drop": drop, "falls": drop > 2 * math.sqrt(2) * noise}


def diagnose(
    D: Sequence[float] | Array,
    y: Sequence[float] | Array,
    *,
    law: Law | None = None,
    first: int = 4,
    cross_entropy: Sequence[float] | Array | None = None,
    baseline: float | None = None,
    tolerance: float = 0.01,
    noise: float = 0.01,
    seed: int = 0,
) -> Diagnosis:
    """The guide: continue, stop, change the data, or measure more.

    In this order: too few points; no better than `baseline`; scores that fall, or an α of 0 while they are
    not flat; a law that misses the points held out by more than chance; little left to gain; else improving.

    Args:
        D: data seen by each fine-tuned checkpoint; equal ones are seeds.
        y: the task's score.
        law: `LogLaw()` by default; `PowerLaw()` for scores that fall.
        first: how many smallest D the law is fitted to for the check on the others.
        cross_entropy: of the same checkpoints, to be compared with the score.
        baseline: the score of fine-tuning without pre-training.
        tolerance: a relative gain by twice the data below this is a plateau.
        noise: the deviation of log y from seed to seed, where there is one seed only.
        seed: of the intervals' bootstrap.

    Raises:
        ValueError: as `Curve.of` does, but for too few points; a baseline that is not positive and finite.
    """
    kind: Law = law or LogLaw()
    if baseline is not None and not 0 < baseline < math.inf:
        raise ValueError(f"baseline must be a positive finite number, got {baseline}: a log is taken.")
    if len(np.unique(np.asarray(D, dtype=np.float64))) < 3:
        return Diagnosis(
            "insufficient", "The law has three coefficients; fine-tune checkpoints at 3 or more D."
        )
    curve = Curve.of(D, y)
    whole = fit(kind, D, y)
    chance = (curve.noise or noise) / math.sqrt(float(curve.seeds.min()))
    way = trend(curve.y, chance, rises=kind.rises)
    held = _held_out(kind, curve, first, curve.noise or noise, seed) if len(curve) > first else None
    notes = _notes(curve, whole, way, D, cross_entropy)
    status, reason = _judge(curve, whole, way, held, chance, baseline, tolerance)
    return Diagnosis(status, reason, whole, held, way, notes)


def _judge(
    curve: Curve,
    whole: Fit,
    way: Mapping[str, Any],
    held: Mapping[str, Any] | None,
    chance: float,
    baseline: float | None,
    tolerance: float,
) -> tuple[str, str]:
    sign = 1 if whole.law.rises else -1
    best = float((curve.y * sign).max() * sign)
    if baseline is not None and sign * math.log(best / baseline) <= 2 * chance:
        return (
            "no_gain",
            f"The best score, {best:.4g}, is no better than {baseline:.4g} without pre-training.",
        )
    flat = float(np.ptp(np.log(curve.y))) <= 2 * math.sqrt(2) * chance
    if way["falls"] and way["tau"] < 0.3:
        return "misaligned", (
            f"Scores get worse with more data: by {100 * abs(math.expm1(-sign * way['drop'])):.1f} % against "
            f"the best before, Kendall τ {way['tau']:.2f}."
        )
    if "alpha" in whole.at_bound and not flat:
        return "misaligned", "Scores change, but the law finds no trend (an exponent of 0)."
    misses = [] if held is None else zip(held["log_errors"], held["allowed"], strict=True)
    beyond = [(abs(error), allowed) for error, allowed in misses if abs(error) > allowed]
    if beyond:
        error, allowed = (100 * math.expm1(part) for part in max(beyond))
        return "off_law", (
            f"Scores get better, but the law of the smallest D misses a larger one by {error:.1f} %, where "
            f"chance explains {allowed:.1f} %."
        )
    if whole.spread > 0.05:
        return "insufficient", "Fits of equal quality disagree on what twice the data would give."
    gain = sign * math.expm1(float(np.diff(whole.log_value(curve.D[-1] * np.array([1, 2])))[0]))
    if gain < tolerance:
        return "plateau", f"Twice the data would bring {100 * gain:.2f} %, less than {100 * tolerance:g} %."
    checked = "" if held else " Nothing was held out to check the law by."
    return "improving", f"The law holds, and twice the data would bring {100 * gain:.1f} %.{checked}"


def _held_out(law: Law, curve: Curve, first: int, noise: float, seed: int) -> dict[str, Any]:
    """The error of the law of the smallest D, and what is `allowed` of it.

    That is 0.05, and where errors are beyond it the half-width of an interval for the new scores, if it is
    more, at a level that leaves all points together 5 %.
    """
    early = fit_curve(law, curve.smallest(first))
    error = early.held_out(curve.D[first:], curve.y[first:])
    allowed = np.full(len(curve) - first, 0.05)
    if error["max"] > 0.05:
        level = 1 - 0.05 / len(allowed)
        lower, upper = early.interval(curve.D[first:], level=level, measured=True, noise=noise, seed=seed)
        centre = early.log_value(curve.D[first:])
        allowed = np.maximum(allowed, np.maximum(np.log(upper) - centre, centre - np.log(lower)))
    return {**error, "allowed": allowed.tolist()}


def _notes(
    curve: Curve,
    whole: Fit,
    way: Mapping[str, Any],
    D: Sequence[float] | Array,
    cross_entropy: Sequence[float] | Array | None,
) -> list[str]:
    notes = []
    if whole.at_bound:
        notes.append(f"{' and '.join(whole.at_bound)} at its bound: the law may not hold.")
    if cross_entropy is not None and way["falls"]:
        fallen = np.log(Curve.of(D, cross_entropy).y)
        if fallen[-1] < fallen[0]:
            notes.append(
                "Cross-entropy falls while the score gets worse: do not choose data by cross-entropy."
            )
    if curve.noise is None:
        notes.append("One seed a point: chance and trend are hard to tell apart.")
    return notes


@dataclass(frozen=True)
class Candidate:
    """What one choice of data is expected to give.

    Attributes:
        name: of the data.
        diagnosis: of its curve.
        score: the law's at the D asked for; None where it should not be extrapolated.
        interval: of the law there, 95 %; None as well where three scores leave nothing to tell noise by.
    """

    name: str
    diagnosis: Diagnosis
    score: float | None
    interval: tuple[float, float] | None


def compare(
    curves: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]],
    at: float,
    *,
    ceiling: float | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Candidate]:
    """Choices of data by the score that they are expected to give at D = `at`, the best first.

    Curves that are misaligned, off the law or insufficient have no expected score and come last; so do those
    whose law has no value there, at a D far below the smallest.

    Args:
        curves: (D, y) by name.
        at: the D to compare at.
        ceiling: the largest score that the metric has, such as 100 of BLEU.
        seed: of the intervals' bootstrap.
        options: of `diagnose`.

    Raises:
        ValueError: as `diagnose`; a ceiling that is not positive.

    Warns:
        UserWarning: far extrapolation, bounds, and a prediction above 80 % of `ceiling`: the laws know no
            largest score.
    """
    if ceiling is not None and not ceiling > 0:
        raise ValueError(f"ceiling must be positive, got {ceiling}.")
    found = []
    for name, (D, y) in curves.items():
        diagnosis = diagnose(D, y, seed=seed, **options)
        score, interval = None, None
        if diagnosis.fit is not None and diagnosis.status in ("improving", "plateau", "no_gain"):
            expected = float(diagnosis.fit.predict(at))
            score = None if math.isnan(expected) else expected
            if score is not None:
                check_ceiling(score, ceiling)
            if score is not None and diagnosis.fit.freedom > 0:
                lower, upper = diagnosis.fit.interval(at, seed=seed)
                interval = float(lower), float(upper)
        found.append(Candidate(name, diagnosis, score, interval))
    sign = -1 if (options.get("law") or LogLaw()).rises else 1
    return sorted(found, key=lambda one: (one.score is None, sign * (one.score or 0)))


def check_ceiling(score: float, ceiling: float | None) -> None:
    """Warns where a prediction comes near to what a metric can reach."""
    if ceiling is not None and score > 0.8 * ceiling:
        what = "above" if score > ceiling else "above 80 % of"
        warnings.warn(
            f"The law predicts {score:.4g}, {what} the largest score {ceiling:g}: it knows no such limit.",
            stacklevel=3,
        )


def language_alignment(
    shares: Mapping[str, float],
    source: str,
    target: str,
    *,
    source_weight: float = 0.7,
    target_weight: float = 0.8,
) -> float:
    """How a mixture of languages suits a translation, eq. (2): p_s p_t + 0.7 p_s + 0.8 p_t with p the shares.

    One definition among possible ones, as its authors say; no fit uses it, and it does not foretell by itself
    where the law fails.

    Raises:
        ValueError: a share outside [0, 1], or shares that sum to more than 1.
    """
    if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(f"shares must lie in [0, 1] and sum to at most 1, got {dict(shares)}.")
    p_source, p_target = shares.get(source, 0.0), shares.get(target, 0.0)
    both = p_source * p_target
    return both + source_weight * p_source + target_weight * p_target
