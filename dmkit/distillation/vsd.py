"""Variational score distillation with guided teachers: SwiftBrush (Nguyen and Tran, CVPR 2024) and PG-SB
(Nguyen et al., *SNOOPI*, arXiv 2412.02687, also as *Supercharged One-step Text-to-Image Diffusion Models with
Negative Prompts*, ICCV 2025).

With the frozen teacher ε_ψ, a copy ε_π that learns what the student makes, and the student's image x̂_0 made
noisy, x̂_t (`dmkit.distillation.process`),

    ε̂(x_t, t, y, κ) = (1 - κ) ε(x_t, t, ∅) + κ ε(x_t, t, y)                                         (1)
    g = σ_t² (ε̂_ψ(x̂_t, t, y, κ) - ε̂_π(x̂_t, t, y, κ)),   ∇_θ L_VSD = E[g ∂x̂_0/∂θ]                 (2), eq. 6
    L_π = E[α_t² (ε_π(x̂_t, t, y) - ε)²]                                                            (3)

κ = 1 is no guidance. PG-SB draws one κ of a range for both teachers, anew each time; SwiftBrush has κ = 4.5,
always. (SwiftBrush v2 counts from 0: its γ is κ - 1.)

Networks that say v or x_0 get the same losses: (2) and (3) are in ε, by dε = c_t dp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown_name
from ..training.randomness import Draws
from .process import Process

PER = ("iteration", "sample")


@dataclass(frozen=True)
class Kappa:
    """The guidance scale of both teachers: uniform in [low, high].

    Args:
        low, high: 0 <= low <= high. Below 1 is less than conditional, and meant so.
        per: one κ an `iteration`, or one a `sample`.

    Raises:
        ValueError: a bad range, or an unknown `per`.
    """

    low: float
    high: float
    per: str = "iteration"

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high < math.inf):
            raise ValueError(
                f"kappa is from {self.low} to {self.high}; it must be a range of numbers of at least 0, the "
                "smaller one first."
            )
        if self.per not in PER:
            raise unknown_name("kappa_sampling", self.per, PER)

    @classmethod
    def of(cls, values: Sequence[float], per: str = "iteration") -> Kappa:
        """One number for a fixed κ, two for a range.

        Raises:
            ValueError: another count, or as `Kappa`.
        """
        if len(values) not in (1, 2):
            raise ValueError(f"kappa is one number or the two ends of a range, not {len(values)} numbers.")
        return cls(float(values[0]), float(values[-1]), per)

    @property
    def unguided(self) -> bool:
        """Whether (1) is the conditional prediction alone, so that the other need not be made."""
        return self.low == self.high == 1

    def draw(self, draws: Draws, rows: int) -> Tensor:
        """(1,) or (rows,), float32."""
        spread = draws.uniform((1 if self.per == "iteration" else rows,))
        return self.low + (self.high - self.low) * spread


def guided(conditional: Tensor, unconditional: Tensor, kappa: Tensor) -> Tensor:
    """(1), of predictions (B, …) of any type; κ (1,) or (B,)."""
    scale = kappa.view(-1, *[1] * (conditional.ndim - 1))
    return unconditional.float() + scale * (conditional.float() - unconditional.float())


def vsd_gradient(process: Process, teacher: Tensor, fake: Tensor, t: Tensor) -> Tensor:
    """g of (2), before the mean over elements.

    Args:
        process: the teachers' noise process.
        teacher, fake: their guided predictions (B, …) at the same x̂_t.
        t: timesteps (B,).

    Returns:
        float32 (B, …). Where a teacher is not finite it is 0: one bad element must not stop a training.
    """
    _, sigma = process.at(t, teacher)
    scale = sigma.square() * process.epsilon_per_prediction(t, teacher)
    return torch.nan_to_num(scale * (teacher.float() - fake.float()), nan=0.0, posinf=0.0, neginf=0.0)


def vsd_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient in x̂_0 is g over the number of its elements; its value is half g's mean square.

    A student that is not finite makes it not finite.
    """
    x0 = x0.float()
    return 0.5 * F.mse_loss(x0, (x0 - gradient).detach())


def fake_loss(process: Process, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(3), a mean over all elements.

    Args:
        process: the teachers' noise process.
        prediction: of the learning teacher at x_t (B, …), not guided.
        x0: the student's images, detached.
        noise: ε of x_t.
        t: timesteps (B,).
    """
    alpha, _ = process.at(t, x0)
    scale = alpha * process.epsilon_per_prediction(t, x0)
    return (scale * (prediction.float() - process.target(x0, noise, t))).square().mean()
