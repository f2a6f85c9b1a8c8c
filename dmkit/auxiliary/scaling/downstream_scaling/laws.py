"""The two laws, in coordinates that can be fitted.

Every law is a curve of d = log D - log D_first, where D_first is the smallest fitted D, and of three numbers
θ that say how it starts, rises and bends; `coefficients` turns θ into the paper's A, α, β or E, A, α.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST_LOG = 600.0  # of a coefficient that is reported


class Law(Protocol):
    """What `fit` needs of a law."""

    @property
    def delta(self) -> float: ...

    @property
    def rises(self) -> bool: ...

    @property
    def bounds(self) -> tuple[Array, Array]: ...

    def log_value(self, theta: Array, d: Array) -> tuple[Array, Array]: ...

    def starts(self, d: Array, log_y: Array) -> list[Array]: ...

    def scaled(self, theta: Array, log_factor: float) -> Array: ...

    def coefficients(self, theta: Array, log_first: float) -> dict[str, float]: ...

    def at_bound(self, theta: Array) -> list[str]: ...


@dataclass(frozen=True)
class LogLaw:
    """f(D) = (log(A D^α))^β, eq. (1): for scores that rise with data, such as BLEU, ROUGE or COMET.

    With u = log(A D^α) and γ = 1/β the curve is

        log f = v + log(1 + γ s d) / γ,     v = β log u_first,  s = α β / u_first

    v is the score at D_first, s its elasticity there, γ how it bends: γ → 0 is the power law D^s. u > 0
    holds for every D ≥ D_first by s ≥ 0 alone, and a score in other units moves v and nothing else.

    Attributes:
        beta_max: the largest β. Points that are convex in log D have no best β, it would grow for ever.
        delta: δ of the Huber loss of log residuals.
    """

    beta_max: float = 10.0
    delta: float = 0.1

    rises = True
    beta_min = 0.01

    def __post_init__(self) -> None:
        if not self.beta_max > self.beta_min:
            raise ValueError(f"beta_max must be above {self.beta_min}, got {self.beta_max}.")
        _check_delta(self.delta)

    @property
    def bounds(self) -> tuple[Array, Array]:
        lower, upper = [-np.inf, 0, 1 / self.beta_max], [np.inf, np.inf, 1 / self.beta_min]
        return np.array(lower), np.array(upper)

    def log_value(self, theta: Array, d: Array) -> tuple[Array, Array]:
        """log f (..., n) of θ (..., 3), and its derivatives by v, s, γ (..., n, 3). NaN where u ≤ 0."""
        v, s, gamma = (theta[..., k, None] for k in range(3))
        z = gamma * s * d
        with np.errstate(invalid="ignore", divide="ignore"):
            bent = np.log1p(z)
            # z/(1+z) - log(1+z) cancels for small z, where it is -z²/2 + 2z³/3 - 3z⁴/4.
            series = z**2 * (-1 / 2 + z * (2 / 3 - z * 3 / 4))
            by_gamma = np.where(np.abs(z) < 1e-3, series, z / (1 + z) - bent) / gamma**2
        return v + bent / gamma, np.stack([np.ones_like(z), d / (1 + z), by_gamma], axis=-1)

    def starts(self, d: Array, log_y: Array) -> list[Array]:
        """For a grid of β the straight line through f^(1/β), which is u."""
        found = []
        for beta in np.geomspace(0.3, self.beta_max, 7):
            slope, first = np.polyfit(d, np.exp(log_y / beta), 1)
            first = max(first, 0.2 * float(np.exp(log_y.min() / beta)))
            slope = max(slope, 1e-3 * first / (d[-1] * beta))
            found.append(np.array([beta * math.log(first), beta * slope / first, 1 / beta]))
        return found

    def scaled(self, theta: Array, log_factor: float) -> Array:
        """θ of the same curve with scores multiplied by a factor."""
        return theta + np.array([log_factor, 0, 0])

    def coefficients(self, theta: Array, log_first: float) -> dict[str, float]:
        """The paper's: log A, α, β."""
        v, s, gamma = (float(x) for x in theta)
        first = math.exp(min(v * gamma, LARGEST_LOG))  # of a small β and a score in the thousands
        alpha = gamma * s * first
        return {"log_A": first - alpha * log_first, "alpha": alpha, "beta": 1 / gamma}

    def at_bound(self, theta: Array) -> list[str]:
        names = ["alpha"] * bool(theta[1] < 1e-6)
        return names + ["beta"] * bool(theta[2] < 1.001 / self.beta_max or theta[2] > 0.999 / self.beta_min)


@dataclass(frozen=True)
class PowerLaw:
    """L(D) = E + A / D^α, eq. (3): for what falls with data to a floor E, such as cross-entropy or a Fréchet
    distance.

    The curve is L = E + B exp(-α d) with θ = (E, B, α) and A = B D_first^α.

    Attributes:
        delta: δ of the Huber loss of log residuals; the paper's text has 1e-3, two of its captions 1e-5.
    """

    delta: float = 1e-3

    rises = False
    alpha_max = 10.0

    def __post_init__(self) -> None:
        _check_delta(self.delta)

    @property
    def bounds(self) -> tuple[Array, Array]:
        return np.array([0, 1e-9, 0]), np.array([np.inf, np.inf, self.alpha_max])  # no log of 0

    def log_value(self, theta: Array, d: Array) -> tuple[Array, Array]:
        """log L (..., n) of θ (..., 3), and its derivatives by E, B, α (..., n, 3)."""
        floor, height, alpha = (theta[..., k, None] for k in range(3))
        decay = np.exp(-alpha * d)
        value = floor + height * decay
        by = np.stack([np.ones_like(decay), decay, -height * d * decay], axis=-1)
        return np.log(value), by / value[..., None]

    def starts(self, d: Array, log_y: Array) -> list[Array]:
        """For a grid of α the best E, B ≥ 0 by relative error, which are linear."""
        from scipy.optimize import nnls

        found = []
        for alpha in (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0):
            columns = np.stack([np.ones_like(d), np.exp(-alpha * d)], axis=1) / np.exp(log_y)[:, None]
            (floor, height), _ = nnls(columns, np.ones_like(d))
            found.append(np.array([max(floor, 1e-3), max(height, 1e-3), alpha]))
        return found

    def scaled(self, theta: Array, log_factor: float) -> Array:
        """θ of the same curve with values multiplied by a factor."""
        factor = math.exp(log_factor)
        return theta * np.array([factor, factor, 1])

    def coefficients(self, theta: Array, log_first: float) -> dict[str, float]:
        """The paper's: E, log A, α."""
        floor, height, alpha = (float(x) for x in theta)
        log_height = math.log(height) if height > 0 else -math.inf
        return {"E": floor, "log_A": log_height + alpha * log_first, "alpha": alpha}

    def at_bound(self, theta: Array) -> list[str]:
        flat = theta[2] < 1e-6 or theta[1] < 1e-6 * theta[0]
        return ["alpha"] * bool(flat or theta[2] > 0.999 * self.alpha_max) + ["E"] * bool(
            theta[0] < 1e-6 * theta[1]
        )


def _check_delta(delta: float) -> None:
    if not delta > 0:
        raise ValueError(f"delta of the Huber loss must be positive, got {delta}.")
