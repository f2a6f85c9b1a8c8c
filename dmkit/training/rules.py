"""Gradient rules: how the named losses of a step become the gradients of the parameters.

A rule sees the losses of one micro-batch and calls `accelerator.backward` exactly once, which leaves
`parameter.grad` accumulated, scaled, and averaged over the processes. Clipping, accumulation, mixed precision
and the optimiser step stay with the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter


class GradientRule(Protocol):
    """Turns losses into gradients: `rule(accelerator, losses, parameters)`."""

    def __call__(
        self, accelerator: Accelerator, losses: Mapping[str, Tensor], parameters: Sequence[Parameter]
    ) -> None: ...


def sum_losses(
    accelerator: Accelerator, losses: Mapping[str, Tensor], parameters: Sequence[Parameter]
) -> None:
    """The default rule: the gradient of the plain sum of all losses."""
    accelerator.backward(sum(losses.values()))  # type: ignore[arg-type]
