"""SPMs inside the weights: no cost per step, and no transport.

PEFT's own merging switches a layer's other adapters off and subtracts to go back. Here the user's LoRAs go on
acting, and the original weights are kept and put back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .layers import adapter_layers, lora_layers


@torch.no_grad()
def fuse(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Adds adapters to the weights of their layers, each at its weight: W + Σ_c w_c (α_c / r_c) U_c D_c.

    Returns:
        The original weights by layer name, on the CPU, for `unfuse`.

    Raises:
        ValueError: the model has no adapter of such a name.
    """
    wanted = {layer: None for name in names for layer in adapter_layers(model, name)}
    originals: dict[str, Tensor] = {}
    try:
        for name in wanted:
            layer = model.get_submodule(name)
            weight = layer.get_base_layer().weight
            originals[name] = weight.detach().to("cpu", copy=True)
            total = weight.float()
            for adapter in names:
                if adapter in layer.lora_A:
                    down = layer.lora_A[adapter].weight.float()
                    up = layer.lora_B[adapter].weight.float()
                    update = up.flatten(1) @ down.flatten(1)
                    total = total + layer.scaling[adapter] * update.view_as(weight)
            weight.copy_(total)
    except BaseException:
        unfuse(model, originals)
        raise
    return originals


@torch.no_grad()
def unfuse(model: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Puts the weights back that `fuse` has returned, to the bit."""
    wrapped = lora_layers(model)
    for name, original in originals.items():
        # The wrapper is gone if somebody has unloaded all adapters in between.
        layer = wrapped[name].get_base_layer() if name in wrapped else model.get_submodule(name)
        layer.weight.copy_(original)
