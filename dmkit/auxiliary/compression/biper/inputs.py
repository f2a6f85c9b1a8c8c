"""Inputs that have one sign only.

A sign keeps nothing of what a ReLU passes on: all of it is at least 0, so that x_b is 1 everywhere, and what
the layer computes no longer depends on the picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn

# Of outputs that are never negative.
_RECTIFIERS = (
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax, nn.Softmax2d,
)  # fmt: skip
# Of outputs that have the signs of their inputs, or nearly.
_CARRIERS = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
# A sample of fewer numbers may be of one sign by chance.
FEWEST = 32


def behind_rectifiers(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Which layers see a ReLU or its like before them, as far as `nn.Sequential` shows the order.

    Args:
        model: any module.
        names: of layers in it.

    Returns:
        The layer's name -> the class of what keeps its input from being negative.
    """
    found: dict[str, str] = {}
    inside: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential) or name in inside:
            continue
        culprit = ""
        for key, child in _in_order(module, name, inside):
            if key in names and culprit:
                found[key] = culprit
            if isinstance(child, _RECTIFIERS):
                culprit = type(child).__name__
            elif not isinstance(child, _CARRIERS):
                culprit = ""
    return found


def _in_order(module: nn.Sequential, name: str, inside: set[str]) -> list[tuple[str, nn.Module]]:
    """What a sequence calls, one after the other; sequences in it are opened, and noted as seen."""
    calls = []
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if isinstance(child, nn.Sequential):
            inside.add(path)
            calls += _in_order(child, path, inside)
        else:
            calls.append((path, child))
    return calls


def has_one_sign(x: Tensor) -> bool:
    """Whether all of x is at least 0, or all below; costs a wait for the device. Few numbers never have."""
    signs = x.detach() >= 0
    return x.numel() >= FEWEST and bool(signs.all() | ~signs.any())


def can_be_looked_at(x: Tensor) -> bool:
    """Whether x has numbers: not when a compiler traces."""
    return not (x.is_meta or torch.compiler.is_compiling())


def warn(what: str, stacklevel: int) -> None:
    """Says which inputs are of one sign, and the way out."""
    warnings.warn(
        f"{what}, and its sign is the same for every picture: the layer passes nothing on. Binarize with "
        "binarize_input=False, so that only weights are binary, or put an activation with both signs before "
        "it (a batch norm, Hardtanh, or none).",
        stacklevel=stacklevel + 1,
    )
