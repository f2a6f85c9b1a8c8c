"""The order in which a network calls its layers, which is not always that of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def execution_order(model: nn.Module, inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None) -> list[str]:
    """Names of the modules with parameters of their own, in the order of their first call.

    Args:
        model: any network; its modes are as before afterwards.
        inputs: what its forward pass is given for once: a tensor, or arguments by position or by name. None:
            the order of registration, which a UNet of Diffusers, for one, does not run in.
    """
    holders = {
        name: module
        for name, module in model.named_modules()
        if any(p is not None for p in module._parameters.values())
    }
    if inputs is None:
        return list(holders)
    called: dict[str, None] = {}

    def note(name: str, *_: Any) -> None:
        called.setdefault(name)

    hooks = [m.register_forward_pre_hook(partial(note, name)) for name, m in holders.items()]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(inputs, Mapping):
                model(**inputs)
            else:
                model(*([inputs] if isinstance(inputs, Tensor) else inputs))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return list(called)
