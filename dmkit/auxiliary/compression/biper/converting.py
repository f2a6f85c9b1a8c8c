"""Making layers of any module binary, and the two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, nn

from ....errors import compiled, unknown_name
from .._order import execution_order
from .functions import check_omega
from .inputs import behind_rectifiers, warn
from .layers import STAGES, BinaryLayer, BiPerConv2d, BiPerLinear, Product, check


def binarize(
    model: nn.Module,
    omega: float | None = 20.0,
    *,
    layers: str | Sequence[str] | None = None,
    skip: Sequence[str] = ("first", "last"),
    inputs: Any = None,
    stage: str = "real",
    binarize_input: bool = True,
    pretrained: bool = False,
    pad_value: float = 0,
    generator: Generator | None = None,
) -> list[str]:
    """Replaces convolutions and linear layers inside a module by binary ones, which take over their
    parameters.

    Args:
        model: any module; changed in place, so keep a copy of what is still needed.
        omega: ω; 20 in the paper. None: the sign with a straight-through gradient.
        layers: a regular expression that the whole name of a layer matches, or names; all by default. Names
            of modules mean every layer inside.
        skip: which of the layers that `layers` selects stay as they are: "first" and "last" by the order of
            calls, and any names. Nothing else is skipped when `layers` is a list of names.
        inputs: what the model is given for once, to find the order of calls; by default that of registration.
        stage: "real" to start with, (4).
        binarize_input: whether the layers' inputs are made binary too; else weights only. Not behind a ReLU,
            whose outputs all have the sign 1: there is a warning, at once where `nn.Sequential` shows the
            order, else at a layer's first forward pass.
        pretrained: whether the present weights are worth keeping: latent numbers and α are then chosen so
            that α s(w) equals them. Otherwise they become the latent numbers, and α ~ U[0, 1).
        pad_value: what convolutions pad binary inputs with, 0 or 1.
        generator: of α.

    Returns:
        Names of the replaced layers.

    Raises:
        ValueError: no layer left to replace, no regular expression, unknown names, or what `BiPerConv2d`
            refuses; nothing is replaced then.
    """
    check_omega(omega)
    chosen = _chosen(model, layers, skip, inputs)
    for name, layer in chosen.items():
        try:
            check(layer, omega, stage, pad_value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    rectified = behind_rectifiers(model, chosen) if binarize_input else {}
    for name, layer in chosen.items():
        binary = binary_layer(
            layer,
            omega,
            stage=stage,
            binarize_input=binarize_input,
            pretrained=pretrained,
            pad_value=pad_value,
            generator=generator,
        )
        binary.looked = name in rectified
        replace(model, name, binary)
    if rectified:
        kinds = "/".join(sorted(set(rectified.values())))
        warn(f"What enters {', '.join(rectified)} comes from a {kinds} and is never negative", stacklevel=2)
    return list(chosen)


def binary_layer(
    layer: nn.Conv2d | nn.Linear, omega: float | None, *, pad_value: float = 0, **settings: Any
) -> BinaryLayer:
    """The binary layer of a plain one; arguments as for `BiPerConv2d`."""
    if isinstance(layer, nn.Conv2d):
        return BiPerConv2d(layer, omega, pad_value=pad_value, **settings)
    return BiPerLinear(layer, omega, **settings)


def _chosen(
    model: nn.Module, layers: str | Sequence[str] | None, skip: Sequence[str], inputs: Any
) -> dict[str, nn.Conv2d | nn.Linear]:
    # Exact types: a subclass may compute something else.
    known = {name: m for name, m in model.named_modules() if name and type(m) in (nn.Conv2d, nn.Linear)}
    ordered = [name for name in execution_order(model, inputs) if name in known]
    if layers is None:
        names = ordered
    elif isinstance(layers, str):
        names = [name for name in ordered if compiled("layers", layers).fullmatch(name)]
    else:
        names = [name for wanted in layers for name in _inside(wanted, ordered)]
        skip = [name for name in skip if name not in ("first", "last")]
    dropped: set[str] = set()
    for name in skip:
        if name in ("first", "last"):
            dropped |= {ordered[0 if name == "first" else -1]} if ordered else set()
        else:
            dropped |= set(_inside(name, ordered))
    names = [name for name in dict.fromkeys(names) if name not in dropped]
    if not names:
        raise ValueError(
            f"No layer of this {type(model).__name__} is left to be made binary: it has "
            f"{', '.join(ordered) or 'no Conv2d or Linear'}; skipped: {', '.join(sorted(dropped)) or 'none'}."
        )
    return {name: known[name] for name in names}


def _inside(wanted: str, known: Sequence[str]) -> list[str]:
    found = [name for name in known if name == wanted or name.startswith(f"{wanted}.")]
    if not found:
        raise unknown_name("layer", wanted, known)
    return found


def replace(model: nn.Module, name: str, layer: Product) -> None:
    """Puts a layer in the place of the one of this name, which it is told."""
    layer.label = name
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, layer)


def binary_layers(model: nn.Module) -> dict[str, BinaryLayer]:
    """The binary layers of a module, by name.

    Raises:
        ValueError: none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, BiPerConv2d | BiPerLinear)}
    if not found:
        raise ValueError(f"This {type(model).__name__} has no binary layer; `binarize` makes some.")
    return found


@torch.no_grad()
def set_stage(model: nn.Module, stage: str, *, rescale: bool = False) -> None:
    """Moves all binary layers of a module to a stage, (4).

    Args:
        model: with binary layers.
        stage: "real" or "binary".
        rescale: multiplies α by the mean of |s(w)| over an output's weights when layers become binary, the
            best factor of b(w) for s(w). The paper leaves α to stage 2.

    Raises:
        ValueError: an unknown stage, or no binary layer.
    """
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    for layer in binary_layers(model).values():
        if rescale and layer.stage == "real" and stage == "binary":
            layer.scale *= layer.effective_weight().flatten(1).abs().mean(1).to(layer.scale.dtype)
        layer.stage = stage
