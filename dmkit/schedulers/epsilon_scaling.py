"""Epsilon scaling (Ning et al., *Elucidating the Exposure Bias in Diffusion Models*, ICLR 2024, arXiv
2308.15321).

A sampler's own states carry more noise than its training states, so the network's noise estimate is too long.
The remedy costs nothing: divide it by a constant, eps' = eps / (1 + b) (their uniform schedule λ_t = 1 + b; b
is about 0.005 to 0.02 in few steps, and 0 turns it off).

It is an option, `epsilon_scaling`, of every Time-Shift scheduler on a variance-preserving schedule, so the
two can be compared (`time_shift_window=0, epsilon_scaling=0.01`) and combined.
"""

from __future__ import annotations

from torch import Tensor


def scale_epsilon(
    output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str, b: float
) -> Tensor:
    """The network's output with its noise estimate divided by 1 + b.

    Args:
        output: what the network predicts, shaped like `x`.
        x: the state alpha x0 + sigma eps, with alpha² + sigma² = 1.
        alpha: broadcastable to `x`.
        sigma: broadcastable to `x`.
        prediction_type: `epsilon`, `sample` or `v_prediction`; all three describe the same estimate, through
            x0 = (x - sigma eps) / alpha and v = alpha eps - sigma x0.
        b: the scaling, above -1.
    """
    if prediction_type == "epsilon":
        return output / (1 + b)
    if prediction_type == "sample":
        epsilon = (x - alpha * output) / sigma / (1 + b)
        return (x - sigma * epsilon) / alpha
    epsilon = (alpha * output + sigma * x) / (1 + b)
    return alpha * epsilon - sigma * (x - sigma * epsilon) / alpha
