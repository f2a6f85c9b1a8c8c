"""How smooth a loss is where one stands, for losses that have no formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def estimate_smoothness(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> float:
    """The largest size of an eigenvalue of a loss's Hessian at the present parameters, by power iteration.

    It bounds nothing elsewhere: L is the largest over all x. A worker's step needs Lᵢ only as weights or in a
    mean, and `theory.effective_constant` says what an estimate that is wrong costs.

    Args:
        loss: computes the scalar loss from the parameters.
        parameters: float tensors that require gradients.
        iterations: Hessian-vector products, at least 1. The value grows towards the eigenvalue.
        generator: of the first vector.

    Raises:
        ValueError: fewer than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"At least one iteration is needed, not {iterations}.")
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    v = torch.randn(flat.shape, generator=generator, dtype=flat.dtype).to(flat.device)
    size = 0.0
    for _ in range(iterations):
        v = v / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
        products = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
        v = torch.cat([p.flatten() for p in products])
        size = float(v.norm())
    return size
