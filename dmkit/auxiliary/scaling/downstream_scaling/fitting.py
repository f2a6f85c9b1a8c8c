"""Robust fits, their intervals, and their error on points held out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .curves import Curve
from .laws import Array, Law

FAR = 10  # a prediction beyond this many times the largest fitted D warns


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: which.
        curve: the points that it was fitted to.
        theta: (3,) in the law's coordinates.
        loss: the sum of Huber losses of log residuals.
        spread: how far predictions of log y at twice the largest D lie apart among starts that ended within
            1.05 of the best loss; about 0 where the points determine the law.
    """

    law: Law
    curve: Curve
    theta: Array
    loss: float
    spread: float
    _bootstraps: dict[tuple[int, float | None, int], Array] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def coefficients(self) -> dict[str, float]:
        """log A, α, β of eq. (1), or E, log A, α of eq. (3)."""
        return self.law.coefficients(self.theta, self._log_first)

    @property
    def at_bound(self) -> list[str]:
        """Coefficients at the edge of what is allowed: α at 0 means no trend, β at its largest a power
        law.
        """
        return self.law.at_bound(self.theta)

    def log_value(self, D: Any) -> Array:
        """log y of the law at D of any shape; no warnings."""
        return self._curve(self.theta, np.ravel(D)).reshape(np.shape(D))

    def predict(self, D: Any) -> Array:
        """y of the law at D of any shape.

        Warns:
            UserWarning: beyond 10 times the largest fitted D, and where a coefficient is at its bound.
        """
        largest, fitted = float(np.max(D)), float(self.curve.D[-1])
        if largest > FAR * fitted:
            warnings.warn(
                f"{largest:g} is {largest / fitted:.0f} times the largest fitted D, far outside of what was "
                "seen.",
                stacklevel=2,
            )
        if self.at_bound:
            warnings.warn(
                f"{' and '.join(self.at_bound)} of the fit is at its bound: the law may not hold.",
                stacklevel=2,
            )
        return np.exp(self.log_value(D))

    @cached_property
    def residuals(self) -> Array:
        """(n,) log y of the law minus what was measured."""
        return self.log_value(self.curve.D) - np.log(self.curve.y)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `noise`: measured scores minus three coefficients."""
        return int(self.curve.seeds.sum()) - 3

    @cached_property
    def noise(self) -> float:
        """The deviation of log y of one measurement, from seeds and residuals together.

        Raises:
            ValueError: three scores, which any law passes through.
        """
        if self.freedom < 1:
            raise ValueError(
                "three scores leave nothing to tell noise by; intervals need a fourth, or seeds."
            )
        squares = self.curve.within + self.curve.seeds * self.residuals**2
        return float(np.sqrt(squares.sum() / self.freedom))

    def bootstrap(self, draws: int = 200, *, noise: float | None = None, seed: int = 0) -> Array:
        """(draws, 3) θ of fits to scores that the fitted law and noise could have given.

        Args:
            draws: how many.
            noise: the deviation of log y of one measurement, where it is known. Otherwise it is
                `self.noise`, and its own deviation is drawn as well, noise · sqrt(k / χ²_k) with k =
                `freedom`: from four points of one seed it is hardly known, and intervals that ignore that
                are far too narrow.
            seed: of the random numbers.

        Raises:
            ValueError: as `self.noise`.
        """
        key = (draws, noise, seed)
        if key not in self._bootstraps:  # intervals of the law and of its coefficients share one
            self._bootstraps[key] = self._refits(*key)
        return self._bootstraps[key]

    def _refits(self, draws: int, noise: float | None, seed: int) -> Array:
        random = np.random.default_rng(seed)
        scale = self._scale(noise, (draws, 1), random)
        errors = scale * random.standard_normal((draws, len(self.curve))) / np.sqrt(self.curve.seeds)
        centre = self.log_value(self.curve.D)
        middle = float(centre.mean())
        start = self.law.scaled(self.theta, -middle)
        found = _refit(self.law, self._d(self.curve.D), centre - middle + errors, start)
        return np.stack([self.law.scaled(theta, middle) for theta in found])

    def interval(
        self,
        D: Any,
        *,
        level: float = 0.95,
        measured: bool = False,
        noise: float | None = None,
        draws: int = 200,
        seed: int = 0,
    ) -> tuple[Array, Array]:
        """Lower and upper ends, each of D's shape, of an interval of the law's y.

        Args:
            D: where.
            level: how often it should hold the truth.
            measured: of a new measurement of one seed there, instead of the law itself.
            noise, draws, seed: of `bootstrap`.

        Raises:
            ValueError: as `self.noise`, or a level outside (0, 1).
        """
        thetas = self.bootstrap(draws, noise=noise, seed=seed)
        flat = self._curve(thetas, np.ravel(D))
        logs = flat.reshape(draws, *np.shape(D))
        if measured:
            random = np.random.default_rng([seed, 1])
            logs = logs + self._scale(noise, logs.shape, random) * random.standard_normal(logs.shape)
        lower, upper = np.exp(np.quantile(logs, _tails(level), axis=0))
        return lower, upper

    def coefficient_intervals(
        self, *, level: float = 0.95, noise: float | None = None, draws: int = 200, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """An interval for each coefficient; arguments and errors as of `interval`."""
        thetas = self.bootstrap(draws, noise=noise, seed=seed)
        found = [self.law.coefficients(theta, self._log_first) for theta in thetas]
        ends = {name: np.quantile([one[name] for one in found], _tails(level)) for name in found[0]}
        return {name: (float(lower), float(upper)) for name, (lower, upper) in ends.items()}

    def held_out(self, D: Sequence[float] | Array, y: Sequence[float] | Array) -> dict[str, Any]:
        """The error on points that were not fitted.

        Returns:
            `log_errors` (predicted minus measured log y of each), `max`, the largest of them by size, and
            `huber`, the mean Huber loss, which is the figure of the paper.
        """
        errors = self.log_value(D) - np.log(np.asarray(y, dtype=np.float64))
        return {
            "log_errors": errors.tolist(),
            "max": float(np.abs(errors).max()),
            "huber": float(huber(errors, self.law.delta).mean()),
        }

    def _scale(self, noise: float | None, shape: tuple[int, ...], random: np.random.Generator) -> Array:
        if noise is not None:
            return np.full(shape, noise)
        return self.noise * np.sqrt(self.freedom / random.chisquare(self.freedom, shape))

    @property
    def _log_first(self) -> float:
        return float(np.log(self.curve.D[0]))

    def _d(self, D: Any) -> Array:
        return np.log(np.asarray(D, dtype=np.float64)) - self._log_first

    def _curve(self, theta: Array, D: Any) -> Array:
        return self.law.log_value(theta, self._d(D))[0]


def fit(law: Law, D: Sequence[float] | Array, y: Sequence[float] | Array, *, first: int | None = None) -> Fit:
    """Fits a law by the least sum of Huber losses of log residuals, eqs. (6) and (7).

    Args:
        law: `LogLaw()` or `PowerLaw()`.
        D: data seen; several equal ones are seeds, whose scores are averaged.
        y: positive scores.
        first: fit to this many smallest D only (the paper: 4).

    Raises:
        ValueError: fewer than 3 distinct D, values that are not positive and finite, or `first` outside [3,
            n].
    """
    curve = Curve.of(D, y)
    return fit_curve(law, curve if first is None else curve.smallest(first))


def fit_curve(law: Law, curve: Curve) -> Fit:
    """`fit` of a curve whose seeds are put together already."""
    d = np.log(curve.D) - np.log(curve.D[0])
    log_y = np.log(curve.y)
    middle = float(log_y.mean())
    ends = [_minimize(law, d, log_y - middle, start) for start in law.starts(d, log_y - middle)]
    best = min(ends, key=lambda end: end[1])
    ahead = np.array([d[-1] + np.log(2)])
    near = [float(law.log_value(t, ahead)[0].item()) for t, loss in ends if loss <= 1.05 * best[1] + 1e-15]
    return Fit(law, curve, law.scaled(best[0], middle), best[1], max(near) - min(near))


def huber(residuals: Array, delta: float) -> Array:
    """r² / 2 up to δ, δ (|r| - δ/2) beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def _minimize(law: Law, d: Array, log_y: Array, start: Array) -> tuple[Array, float]:
    """θ and its loss, by L-BFGS from one start.

    SciPy's default `ftol` stops half way along the valley between A, α and β.
    """
    from scipy.optimize import minimize

    def objective(theta: Array) -> tuple[float, Array]:
        value, slopes = law.log_value(theta, d)
        loss = float(huber(value - log_y, law.delta).sum())
        return loss, np.clip(value - log_y, -law.delta, law.delta) @ slopes

    lower, upper = law.bounds
    found = minimize(
        objective,
        np.clip(start, lower, upper),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)),
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 1000},
    )
    return found.x, float(found.fun)


def _refit(law: Law, d: Array, log_y: Array, start: Array, steps: int = 300) -> Array:
    """θ (m, 3) for scores (m, n) that are near to a curve whose θ is known.

    Levenberg and Marquardt's steps for all of them at once, which takes a small part of the time that as many
    runs of SciPy take. A θ at its bound stays there while the loss falls beyond it.
    """
    lower, upper = law.bounds
    theta = np.broadcast_to(np.clip(start, lower, upper), (len(log_y), 3)).copy()
    damping = np.full(len(log_y), 1e-3)
    value, slopes = law.log_value(theta, d)
    loss = huber(value - log_y, law.delta).sum(-1)
    idle = np.zeros(len(log_y), dtype=int)  # steps since its loss last fell
    for _ in range(steps):
        residual = value - log_y
        weight = law.delta / np.maximum(np.abs(residual), law.delta)
        gradient = np.einsum("mn,mnk->mk", weight * residual, slopes)
        stuck = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        free = np.where(stuck[:, None], 0, slopes)
        hessian = np.einsum("mn,mnj,mnk->mjk", weight, free, free)
        size = np.maximum(np.einsum("mkk->mk", hessian), 1e-12)
        hessian[:, range(3), range(3)] += damping[:, None] * size + 1e-12
        step = np.linalg.solve(hessian, np.where(stuck, 0, gradient)[..., None])[..., 0]
        trial = np.clip(theta - step, lower, upper)
        new_value, new_slopes = law.log_value(trial, d)
        new_loss = huber(new_value - log_y, law.delta).sum(-1)
        better = new_loss < loss
        idle = np.where(new_loss < loss * (1 - 1e-9) - 1e-20, 0, idle + 1)
        theta[better], loss[better] = trial[better], new_loss[better]
        value[better], slopes[better] = new_value[better], new_slopes[better]
        damping = np.where(better, damping / 5, damping * 4).clip(1e-9, 1e9)
        if idle.min() >= 10:
            break
    return theta


def _tails(level: float) -> list[float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    return [(1 - level) / 2, (1 + level) / 2]
