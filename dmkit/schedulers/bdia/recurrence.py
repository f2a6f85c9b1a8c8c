"""The BDIA recurrence, its inverse and its coefficients, as pure functions.

Zhang, Lewis, Kleijn, *Exact Diffusion Inversion via Bi-directional Integration Approximation*, ECCV 2024,
arXiv 2307.10829. Notation: levels i = N (noise) … 1, 0 (image), level j has (alpha_j, sigma_j); x0_i and e_i
are the data and the noise that the network reads off z_i; F_i(j) is where that reading puts the sample at
level j.

    F_i(j)  = alpha_j x0_i + sigma_j e_i                                    DDIM image of z_i at level j
    z_{i-1} = F_i(i-1) + gamma (z_{i+1} - F_i(i+1))                         sampling
    z_{i+1} = F_i(i+1) + (z_{i-1} - F_i(i-1)) / gamma                       inversion
    z_{i-1} = z_{i+1} + Q(F_i(i-1) - F_i(i+1))                              bit-exact, gamma = 1, fixed point

Both directions read the network at (z_i, t_i) only, which is why the inversion is exact. With zero drift the
recurrence has the roots 1 and -gamma: sampling damps whatever is off the trajectory by gamma per step,
inversion multiplies it by 1/gamma, rounding and the bootstrap's error alike (`amplification`).

O-BELM (Wang et al., *BELM: Bidirectional Explicit Linear Multi-step Sampler*, NeurIPS 2024) is the same
recurrence with a gamma of its own per level, so it needs no second implementation. With s = sigma / alpha and
h_i = s_i - s_{i-1}, matching the coefficient of z_{i+1} gives

    gamma_i = (h_i / h_{i+1})^2 alpha_{i-1} / alpha_{i+1}

and those of z_i and e_i then agree as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

from ...errors import unknown_name
from .._options import is_real

Level: TypeAlias = tuple[float, float]
"""(alpha_j, sigma_j) in double precision; z_j = alpha_j x0 + sigma_j e."""

QUANTUM = 2.0**-36
"""Step of the bit-exact mode: float64 sums of its multiples are exact up to a magnitude of 2^16."""

GAMMA_ADVICE = (
    "Use gamma in [0.92, 1] to invert and edit, about 0.5 to sample in few steps, "
    "and never 1 on Karras noise grids (about 0.25 there)."
)


def image_at(x0: torch.Tensor, e: torch.Tensor, level: Level) -> torch.Tensor:
    """F_i(j) = alpha_j x0_i + sigma_j e_i: the DDIM image at `level` of the state they were read from."""
    alpha, sigma = level
    return alpha * x0 + sigma * e


def two_step(
    F_next: torch.Tensor, F_prev: torch.Tensor, neighbour: torch.Tensor, gamma: float
) -> torch.Tensor:
    """One sampling step: z_{i-1} from F_next = F_i(i-1), F_prev = F_i(i+1) and neighbour = z_{i+1}."""
    return F_next + gamma * (neighbour - F_prev)


def two_step_inverse(
    F_next: torch.Tensor, F_prev: torch.Tensor, neighbour: torch.Tensor, gamma: float
) -> torch.Tensor:
    """One inversion step: z_{i+1} from F_next = F_i(i-1), F_prev = F_i(i+1) and neighbour = z_{i-1}."""
    return F_prev + (neighbour - F_next) / gamma


def two_step_bitwise(
    F_next: torch.Tensor, F_prev: torch.Tensor, neighbour: torch.Tensor, gamma: float = 1.0
) -> torch.Tensor:
    """The sampling step at gamma = 1 with its increment on the `QUANTUM` grid; `neighbour` must lie on it."""
    return neighbour + quantise(F_next - F_prev)


def two_step_bitwise_inverse(
    F_next: torch.Tensor, F_prev: torch.Tensor, neighbour: torch.Tensor, gamma: float = 1.0
) -> torch.Tensor:
    """Undoes `two_step_bitwise`: the same increment is taken away, and both sums are exact."""
    return neighbour - quantise(F_next - F_prev)


def quantise(x: torch.Tensor) -> torch.Tensor:
    """`x` (float64) rounded to multiples of `QUANTUM`."""
    return torch.round(x / QUANTUM) * QUANTUM


def gammas_of(solver: str, gamma: float, levels: Sequence[Level]) -> list[float]:
    """The gamma of each level 0 … N-1.

    Args:
        solver: `"bdia"` (the same `gamma` everywhere) or `"obelm"` (the formula above; `gamma` is not used).
        levels: (alpha_i, sigma_i) for i = 0 … N. Level 0 has no recurrence: its entry only counts the
            bootstrap in `amplification`.
    """
    if solver == "bdia":
        return [gamma] * (len(levels) - 1)
    gammas = [1.0]
    for (a_low, s_low), (a, s), (a_high, s_high) in zip(levels, levels[1:], levels[2:], strict=False):
        h = s / a - s_low / a_low
        # The formula above times (alpha_{i+1} / alpha_{i+1})^2: a level with alpha = 0 gives 0 and not nan.
        gammas.append(h**2 * a_low * a_high / (s_high - a_high * s / a) ** 2)
    return gammas


def amplification(gammas: Sequence[float]) -> float:
    """How much an inversion over these levels multiplies rounding and bootstrap errors: prod 1/gamma_i."""
    return math.inf if min(gammas) <= 0 else math.prod(1 / gamma for gamma in gammas)


def check_options(gamma: float, solver: str, reversible: str, state_dtype: str) -> None:
    """Raises ValueError for options that no BDIA scheduler can work with."""
    if not is_real(gamma) or not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}. {GAMMA_ADVICE}")
    for what, value, known in (
        ("solver", solver, ("bdia", "obelm")),
        ("reversible", reversible, ("algebraic", "bitwise")),
        ("state_dtype", state_dtype, ("float64", "float32")),
    ):
        if value not in known:
            raise unknown_name(what, value, known)
    if reversible == "bitwise" and (gamma != 1 or solver != "bdia" or state_dtype != "float64"):
        raise ValueError(
            "reversible='bitwise' needs gamma=1, solver='bdia' and state_dtype='float64' "
            f"(a division loses bits), got gamma={gamma!r}, solver={solver!r}, state_dtype={state_dtype!r}."
        )


def check_invertible(gammas: Sequence[float], limit: float) -> None:
    """Raises ValueError when inverting over these levels is impossible or would drown in its own rounding."""
    growth = amplification(gammas)
    if math.isinf(growth):
        raise ValueError(f"Inversion divides by gamma, and gamma is 0 on this grid. {GAMMA_ADVICE}")
    if growth > limit:
        raise ValueError(
            f"Inverting {len(gammas)} levels with gamma={gammas[-1]:.4g} multiplies rounding errors by "
            f"{growth:.2g} (gamma^-N), more than max_amplification={limit:.4g}. {GAMMA_ADVICE} "
            "To go on all the same, raise max_amplification."
        )
