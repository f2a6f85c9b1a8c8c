"""What a gradient rule is: how the named losses of a step become the gradients of the parameters.

A rule leaves `parameter.grad` accumulated over the micro-batches, averaged over the processes, and scaled by
the fp16 loss scaler where there is one. Clipping, the optimiser step, EMA and checkpoints stay with the
trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter


class GradientRule:
    """The gradient of the plain sum of all losses; subclasses weigh or combine.

    In each step the trainer asks `needs_each` once, then makes one call for each micro-batch, with losses
    already divided by the number of micro-batches: `backward_sum` with all losses of one forward pass, or
    `collect` with one loss at a time. Then it calls `finish` once, clips, and steps inside `stepping`.

    Attributes:
        stateful: whether steps depend on steps before; such a rule serves one optimiser only.
    """

    stateful = False

    def settings(self) -> dict[str, Any]:
        """What must not change between a run and its continuation, as JSON."""
        return {}

    def prepare(self, accelerator: Accelerator) -> None:
        """Called once, before the optimisers are made.

        Raises:
            NotImplementedError: a way of distributing parameters that the rule cannot work with.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The rule's own trained parameters, as groups of the optimiser. They are neither clipped, averaged
        (EMA) nor saved with the model.
        """
        return []

    def needs_each(self, step: int) -> bool:
        """Whether optimiser step `step` (from 0) needs the gradient of every loss for itself."""
        return False

    def backward_sum(
        self, accelerator: Accelerator, losses: Mapping[str, Tensor], parameters: Sequence[Parameter]
    ) -> None:
        """Takes all losses of a micro-batch, from one forward pass, and calls `accelerator.backward` once."""
        accelerator.backward(sum(losses.values()))

    def collect(
        self, accelerator: Accelerator, losses: Iterable[tuple[str, Tensor]], parameters: Sequence[Parameter]
    ) -> None:
        """Takes a micro-batch's losses one at a time; each may come from a forward pass of its own."""
        raise NotImplementedError

    def finish(
        self, accelerator: Accelerator, parameters: Sequence[Parameter], generator: torch.Generator
    ) -> None:
        """Called after the last micro-batch, with a CPU generator that is the same on all processes."""

    @contextmanager
    def stepping(self, parameters: Sequence[Parameter]) -> Iterator[None]:
        """Surrounds the optimiser's step, for rules about the change of the weights rather than the gradient:
        momentum, Adam's scaling and weight decay all turn a gradient before it is applied.
        """
        yield

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must carry beyond the optimiser's state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`.

        Raises:
            KeyError, ValueError: a tensor that is missing or does not fit.
        """


class FunctionRule(GradientRule):
    """A rule that is no more than a `backward_sum`."""

    def __init__(self, function: Callable[[Accelerator, Mapping[str, Tensor], Sequence[Parameter]], None]):
        self._function = function

    def backward_sum(
        self, accelerator: Accelerator, losses: Mapping[str, Tensor], parameters: Sequence[Parameter]
    ) -> None:
        self._function(accelerator, losses, parameters)


sum_losses = GradientRule()
