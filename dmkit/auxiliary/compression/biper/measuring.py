"""What is lost when s(w) becomes b(w)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .functions import square_wave, wave


@torch.no_grad()
def quantization_error(w: Tensor, omega: float | None) -> dict[str, float]:
    """Errors of b(w) for s(w) over all numbers of a tensor.

    Args:
        w: latent weights, any shape.
        omega: ω, or None for s(w) = w.

    Returns:
        "unit", the mean of (s - b)²; "best", that of (s - γ b)² for the best γ, which is the mean of |s|;
        "relative", the latter over the mean of s²; "l1", the mean of |s - b|.

    Raises:
        ValueError: weights that are NaN, infinite or all zero.
    """
    s = wave(w.detach(), omega).double()
    if not s.isfinite().all() or not s.any():
        raise ValueError("Weights that are NaN, infinite or all zero have no relative error.")
    away = s - square_wave(w.detach(), omega).double()
    power = float(s.square().mean())
    best = power - float(s.abs().mean()) ** 2
    return {
        "unit": float(away.square().mean()),
        "best": best,
        "relative": best / power,
        "l1": float(away.abs().mean()),
    }


def laplace_error(z: float) -> dict[str, float]:
    """ "unit", "best" and "relative" of `quantization_error` for Laplace weights of scale b, with z = ω b.

    E s² = 2z² / (1 + 4z²) and E|s| = z / (1 + z²) coth(π / 2z). "unit" and "relative" fall with z, to
    3/2 - 4/π and 1 - 8/π²; plain signs of such weights have a relative error of 1/2, the limit of z to 0.

    Raises:
        ValueError: z that is not positive.
    """
    if not z > 0:
        raise ValueError(f"z is positive, not {z}.")
    power = 2 / (1 / z**2 + 4)
    size = 1 / (1 / z + z) / math.tanh(math.pi / (2 * z)) if z < math.inf else 2 / math.pi
    best = power - size**2
    return {"unit": power - 2 * size + 1, "best": best, "relative": best / power}
