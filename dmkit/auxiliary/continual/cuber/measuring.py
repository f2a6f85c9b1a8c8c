"""What a task says about a network's layers: their gradients, and where their inputs lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ....training.randomness import Draws
from ....training.subspaces import InputSpan, Layer, joined, observing
from ....training.trainer import Step, Task


def module_name(task: Task, model: nn.Module) -> str:
    """Under which name a task trains a model.

    Raises:
        ValueError: it does not.
    """
    for name, module in task.modules.items():
        if module is model:
            return name
    raise ValueError(f"The task trains {', '.join(task.modules)}, none of which is this learner's model.")


def measure(
    task: Task,
    model: nn.Module,
    network: Callable[..., Any],
    layers: Mapping[str, Layer],
    batches: Iterable[Any],
    *,
    gradients: bool,
    inputs: bool,
) -> tuple[dict[str, Tensor], dict[str, InputSpan]]:
    """Runs a task over some batches in eval mode, forward and, for gradients, backward; nothing is changed.

    Args:
        task: whose losses; its random draws are a function of the batch's number.
        model: what it trains.
        network: what it calls in the model's place.
        layers: the model's layers to look at.
        batches: each with its items in the first dimension of its values.
        gradients: whether to measure the mean gradient of the summed losses, (out, d) for each layer.
        inputs: whether to gather the layers' inputs.

    Raises:
        ValueError: no batch, or a layer that was not called.
    """
    device = next(model.parameters()).device
    task.prepare(device)
    modes = {module: module.training for module in model.modules()}
    slot, modules = module_name(task, model), task.modules
    names = list(layers)
    wanted = [p for name in names for p in (layers[name].weight, layers[name].bias) if p is not None]
    sums, count = [torch.zeros_like(p) for p in wanted], 0
    model.eval()
    modules[slot] = network  # type: ignore[assignment]
    try:
        with observing(layers if inputs else {}) as spans, torch.set_grad_enabled(gradients):
            for k, batch in enumerate(batches):
                batch = send_to_device(batch, device)
                size = len(next(iter(batch.values())))
                draws = Draws(0, k, rank=0, world=1, device=device)
                loss = sum(task.training_step(batch, Step(k, "main", draws)).values()) * size
                count += size
                if gradients:
                    each = torch.autograd.grad(loss, wanted, allow_unused=True)
                    for total, part in zip(sums, each, strict=True):
                        if part is not None:
                            total += part
    finally:
        modules[slot] = model
        for module, training in modes.items():
            module.training = training
    if not count:
        raise ValueError("There is no batch to measure the task on.")
    if inputs and (silent := [name for name in names if name not in spans]):
        raise ValueError(f"The task never calls {', '.join(silent)}; leave such layers out of `layers`.")
    found = {}
    if gradients:
        means = iter(total / count for total in sums)
        for name in names:
            weight = next(means)
            found[name] = joined(weight, None if layers[name].bias is None else next(means)).detach()
    return found, spans
