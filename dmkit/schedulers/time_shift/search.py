"""The search of Time-Shift: which noise level does a state look like?

Li et al., *Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps*, ICLR
2024, arXiv 2305.15583, Theorem 3.1 and Algorithm 3: with v the state's own variance,

    t_s = argmin_{u in [c - w/2, c + w/2]} | v - (1 - ᾱ_u) |

where c is the state's scheduled time. `1 - ᾱ_u` ignores the variance v_0 of the images themselves; the
marginal rule (ours) matches the variance that a true state has, m(u) = ᾱ_u v_0 + 1 - ᾱ_u, and is the paper's
at v_0 = 0. The continuous schedules have closed forms (ours).
"""

from __future__ import annotations

import torch
from torch import Tensor


def within_image_variance(x: Tensor) -> Tensor:
    """The unbiased variance of each image's values around that image's own mean.

    Args:
        x: states (B, …), any float dtype; computed in float32 at least, half precision loses three digits.

    Returns:
        (B,) float64 on the CPU: the one device synchronisation of a step.
    """
    x = x.detach().flatten(1)
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x.var(dim=1, unbiased=True).to("cpu", torch.float64)


def nearest_level(variance: Tensor, levels: Tensor, centre: int, half_window: int) -> Tensor:
    """The timestep within `centre ± half_window` whose level is nearest to each variance; ties: the smallest.

    Args:
        variance: float64 of any shape.
        levels: (T,) float64, the variance that belongs to each training timestep.
        centre: the scheduled timestep; the window is cut off at 0 and T - 1.
        half_window: timesteps to each side, at least 0.

    Returns:
        int64 timesteps, shaped like `variance`.
    """
    low, high = max(0, centre - half_window), min(len(levels) - 1, centre + half_window)
    return low + (variance[..., None] - levels[low : high + 1]).abs().argmin(dim=-1)


def edm_sigma(variance: Tensor, data_variance: float) -> Tensor:
    """Variance exploding: var = v_0 + σ², so σ_s = sqrt(max(var - v_0, 0))."""
    return (variance - data_variance).clamp(min=0).sqrt()


def flow_sigma(variance: Tensor, data_variance: float) -> Tensor:
    """Flow matching: var = (1-σ)² v_0 + σ², solved for σ on the branch where it grows with σ.

    m(σ) falls until σ = v_0 / (1 + v_0) and grows from there; a variance below that minimum gives the
    minimum.
    """
    v_0 = data_variance
    discriminant = (v_0 * v_0 - (1 + v_0) * (v_0 - variance)).clamp(min=0)
    return (v_0 + discriminant.sqrt()) / (1 + v_0)


def flow_turning_point(data_variance: float) -> float:
    """The σ below which a flow state's variance says nothing about its noise level."""
    return data_variance / (1 + data_variance)
