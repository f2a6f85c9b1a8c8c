"""Gradients as one vector over all parameters, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

BLOCK = 1 << 18


def flat_gradient(loss: Tensor, parameters: Sequence[Parameter]) -> tuple[Tensor, list[bool]]:
    """The gradient of a loss, and which parameters it reaches.

    Args:
        loss: a scalar; its graph is kept, as other losses may share it.
        parameters: P numbers in all.

    Returns:
        (P,) in the first parameter's dtype, zero where the loss does not reach, and one flag a parameter.
    """
    if not loss.requires_grad:
        return parameters[0].new_zeros(sum(p.numel() for p in parameters)), [False] * len(parameters)
    found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    parts = [
        p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(parameters, found, strict=True)
    ]
    return torch.cat(parts), [g is not None for g in found]


def unflatten(flat: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
    """Views of (P,) shaped like the parameters; the inverse of concatenation."""
    parts = flat.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def gram(rows: Sequence[Tensor]) -> Tensor:
    """Inner products of k vectors (P,): (k, k) in float64 on the CPU.

    Summed in blocks of float32 products, so that neither a (k, P) copy nor float64 vectors are needed.
    """
    products = []
    for parts in zip(*(row.split(BLOCK) for row in rows), strict=True):
        block = torch.stack(parts).float()
        products.append(block @ block.T)
    return torch.stack(products).cpu().double().sum(0)


def combine(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ rowᵢ, written over the first row."""
    total = rows[0].mul_(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.add_(row, alpha=weight)
    return total
