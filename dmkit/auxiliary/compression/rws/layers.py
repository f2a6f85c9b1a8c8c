"""Which tensors of a network a signature is made of, and what network it belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ....errors import compiled, unknown_name
from .._norms import batch_norms
from .._order import execution_order

Layers = str | Sequence[str]


def head_of(model: nn.Module, inputs: Any = None) -> str:
    """The module that comes last of those with parameters: a classifier's linear layer, a UNet's last
    convolution.
    """
    return execution_order(model, inputs)[-1]


def select(model: nn.Module, layers: Layers, *, inputs: Any = None, head: bool = False) -> list[str]:
    """Names of the parameters in S, in the network's order.

    Args:
        model: the network.
        layers: "conv:K": weights and biases of the first K convolutions in the order of their calls; another
            string: a regular expression that the whole name of a parameter matches; a list: names of
            parameters, or of modules whose parameters are all meant.
        inputs: as for `execution_order`; without it convolutions count as they are registered.
        head: whether the head may be among them. Networks that differ in classes can share a signature
            only without it.

    Raises:
        ValueError: no regular expression, nothing or an unknown name selected, fewer than K convolutions, or
            the head without `head=True`.
    """
    known = [name for name, p in model.named_parameters() if p.is_floating_point()]
    if isinstance(layers, str) and (count := re.fullmatch(r"conv:(\d+)", layers)):
        chosen = _first_convolutions(model, int(count[1]), inputs)
    elif isinstance(layers, str):
        chosen = [name for name in known if compiled("layers", layers).fullmatch(name)]
    else:
        chosen = [name for wanted in layers for name in _named(wanted, known)]
    if not chosen:
        raise ValueError(f"layers: {layers!r} selects no parameter of this {type(model).__name__}.")
    last = head_of(model, inputs)
    if not head and (of_head := [name for name in chosen if name.rpartition(".")[0] == last]):
        raise ValueError(
            f"layers: {layers!r} selects {', '.join(of_head)} of the head, which is not shared between "
            "networks; pass head=True if it is here."
        )
    return list(dict.fromkeys(chosen))


def _first_convolutions(model: nn.Module, count: int, inputs: Any) -> list[str]:
    modules = dict(model.named_modules())
    order = [name for name in execution_order(model, inputs) if isinstance(modules[name], _ConvNd)]
    if not 1 <= count <= len(order):
        raise ValueError(f"layers: conv:{count} of a network with {len(order)} convolutions.")
    own = [(name, key) for name in order[:count] for key, _ in modules[name].named_parameters(recurse=False)]
    return [f"{name}.{key}" if name else key for name, key in own]


def _named(wanted: str, known: Sequence[str]) -> list[str]:
    found = [name for name in known if name == wanted or name.startswith(f"{wanted}.")]
    if not found:
        raise unknown_name(
            "layer or parameter", wanted, {*known, *(name.rpartition(".")[0] for name in known)}
        )
    return found


def norm_tensors(model: nn.Module) -> list[str]:
    """Names of the affine parameters and running statistics of all batch norms that keep statistics."""
    return [
        f"{name}.{key}" if name else key
        for name, module in batch_norms(model).items()
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    ]


def architecture(model: nn.Module, head: str) -> str:
    """16 hex digits of the names and shapes of a network's tensors, without those of its head."""
    shapes = {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] != head
    }
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of names and values, as float32, so that a half precision copy is known again."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
