"""The square wave, its sine, and the signs with their gradients, equations (1) to (3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def check_omega(omega: float | None) -> float | None:
    """
    Raises:
        ValueError: a frequency that is not positive and finite.
    """
    if omega is not None and not (omega > 0 and math.isfinite(omega)):
        raise ValueError(f"omega is a positive, finite frequency or None, not {omega!r}.")
    return omega


def _sign(x: Tensor) -> Tensor:
    """-1 and 1, never 0."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class WeightSign(torch.autograd.Function):
    """sign(s), 1 at 0; its gradient passes as if it were s."""

    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        return _sign(s)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class ActivationSign(torch.autograd.Function):
    """sign(a), 1 at 0, with the gradient max(0, 2 - 2 |a|) of a piecewise parabola (Bi-Real Net)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return _sign(a)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (a,) = ctx.saved_tensors
        return gradient * (2 - 2 * a.abs()).clamp_min(0)


def wave(w: Tensor, omega: float | None) -> Tensor:
    """s(w), (1), in float32 at least: in half precision ω w would be off by 2^-8 of itself and flip signs.

    Args:
        w: any shape.
        omega: ω; None for s(w) = w, which makes `square_wave` the straight-through estimator of the sign: up
            to a factor the limit of ω to 0.
    """
    w = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
    return w if omega is None else torch.sin(omega * w)


def square_wave(w: Tensor, omega: float | None) -> Tensor:
    """b(w), (2): 1 on [0, π/ω), -1 on [π/ω, 2π/ω), and so on; with the gradient of `wave`."""
    return WeightSign.apply(wave(w, omega))
