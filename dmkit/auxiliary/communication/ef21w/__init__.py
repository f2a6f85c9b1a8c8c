"""Averages workers' gradients over a few of their entries and still converges, with steps by the arithmetic
mean of the workers' smoothness constants, up to √n times longer than by the quadratic one: Richtárik, Gasanov
and Burlachenko, *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants*, ICLR
2024, arXiv 2402.10774.

    from dmkit.auxiliary.communication.ef21w import ef21, step_size

For real training the hook in `dmkit.training.communication` does this between processes (`--comm_hook ef21`).
Here is what theory says (`theory`), the method on workers that are rows of a tensor (`simulation`), problems
to try it on (`logistic`), constants of other losses (`smoothness`), and a training for the hook (`training`).
"""

from .logistic import Logistic, tabular
from .simulation import Round, ef21
from .smoothness import estimate_smoothness
from .theory import (
    beta,
    bound,
    clone_counts,
    effective_alpha,
    effective_constant,
    means,
    pl_step_size,
    step_size,
    theta,
    xi,
)

__all__ = [
    "Logistic",
    "Round",
    "beta",
    "bound",
    "clone_counts",
    "ef21",
    "effective_alpha",
    "effective_constant",
    "estimate_smoothness",
    "means",
    "pl_step_size",
    "step_size",
    "tabular",
    "theta",
    "xi",
]
