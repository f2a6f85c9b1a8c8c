"""Batch norms' statistics, which do not fit weights that have changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any], blend: float = 1.0) -> None:
    """Recomputes the statistics of all batch norms as the plain average over batches.

    Args:
        model: the network; its modes are as before afterwards.
        batches: inputs: tensors, or tuples of arguments.
        blend: the new statistics' share, in [0, 1].

    Raises:
        ValueError: no batch.
    """
    norms = list(batch_norms(model).values())
    batches = list(batches)
    if not batches:
        raise ValueError("Statistics need at least one batch.")
    old = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # type: ignore[assignment]  # PyTorch's sign for a cumulative average
        for batch in batches:
            model(*([batch] if isinstance(batch, Tensor) else batch))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    for norm, (mean, variance) in zip(norms, old, strict=True):
        norm.running_mean.lerp_(mean, 1 - blend)  # type: ignore[union-attr]
        norm.running_var.lerp_(variance, 1 - blend)  # type: ignore[union-attr]
