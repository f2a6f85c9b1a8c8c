"""SubspaceProjection: layers keep their answers to inputs of given subspaces, as GPM has it (Saha et al.
2021, arXiv:2103.09762).

    ΔW ← ΔW - ΔW B B'                 B (d, r) orthonormal, W (out, d) as in dmkit.training.subspaces

ΔW is the change that the optimiser applied: momentum, Adam's scaling and weight decay all leave the subspace
that a projected gradient keeps to. The gradient is projected as well, so that clipping and Adam's moments see
only what can be applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from ..subspaces import Layer, check_layer, gradient_matrix, matrix, parts
from .base import GradientRule
from .gram import SHARDED


class SubspaceProjection(GradientRule):
    """Descends the sum of the losses without moving layers along given input directions.

    Args:
        layers: `Linear` and `Conv2d` layers by name.
        bases: (d, r) with orthonormal columns for each; d counts a bias as one more input.

    Raises:
        TypeError, ValueError: a layer of another kind, or in groups; a basis that does not fit its layer.
    """

    def __init__(self, layers: Mapping[str, Layer], bases: Mapping[str, Tensor]):
        self.layers, self.bases = dict(layers), dict(bases)
        for name, layer in self.layers.items():
            check_layer(name, layer)
            if self.bases[name].shape[0] != (width := matrix(layer).shape[1]):
                raise ValueError(
                    f"The basis of {name} is {tuple(self.bases[name].shape)}, its inputs have {width}."
                )

    def settings(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, "ranks": {name: b.shape[1] for name, b in self.bases.items()}}

    def prepare(self, accelerator: Accelerator) -> None:
        if accelerator.distributed_type in SHARDED:
            raise NotImplementedError(
                f"{type(self).__name__} needs whole weights, but {accelerator.distributed_type.value} shards "
                "them."
            )
        self.bases = {name: basis.to(accelerator.device) for name, basis in self.bases.items()}

    def protected(self, name: str) -> Tensor:
        """The directions (d, r) that a layer may not move along now; zero columns are none."""
        return self.bases[name]

    def projected(self, name: str, change: Tensor) -> Tensor:
        """What is allowed of a change (out, d) of a layer's matrix."""
        basis = self.protected(name)
        return change - (change @ basis) @ basis.T

    @torch.no_grad()
    def finish(
        self, accelerator: Accelerator, parameters: Sequence[Parameter], generator: torch.Generator
    ) -> None:
        for name, layer in self.layers.items():
            if layer.weight.grad is not None:
                write_gradient(layer, self.projected(name, gradient_matrix(layer)))

    @contextmanager
    def stepping(self, parameters: Sequence[Parameter]) -> Iterator[None]:
        before = {name: matrix(layer).detach().clone() for name, layer in self.layers.items()}
        yield
        with torch.no_grad():
            for name, layer in self.layers.items():
                change = self.projected(name, matrix(layer) - before[name])
                weight, bias = parts(layer, before[name] + change)
                layer.weight.copy_(weight)
                if bias is not None:
                    layer.bias.copy_(bias)


def write_gradient(layer: Layer, joint: Tensor) -> None:
    """Makes (out, d) the gradient of a layer's weight and bias, where they have one."""
    for parameter, value in zip((layer.weight, layer.bias), parts(layer, joint), strict=True):
        if parameter is not None and parameter.grad is not None and value is not None:
            parameter.grad.copy_(value)
