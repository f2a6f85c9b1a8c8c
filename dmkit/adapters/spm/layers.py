"""Where SPM adapters sit in a denoiser, and how they get in, on, off and out again.

On a layer y = W x, W of shape (m, n), the adapter of rank r adds (equations 1 and 9 of the paper)

    y = W x + γ (α / r) U D x,   D of shape (r, n), U of shape (m, r)                         (1)

with r = α = 1 in the paper: a signal u and a regulator d. That is a LoRA, D being PEFT's `lora_A` and U its
`lora_B`, so PEFT's layers compute it. U starts at 0 and D at Kaiming uniform: a new adapter changes nothing.

PEFT keeps its state in each layer: the active adapters, their scalings, whether all are off. These functions
read and set it on any network; Diffusers' methods of the same purpose exist only where a model has its PEFT
mixin, and both may be mixed.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers import Transformer2DModel
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.utils import recurse_remove_peft_layers, set_weights_and_activate_adapters
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ...errors import unknown_name

# What fusing the QKV projections leaves behind in an attention, unused, when it is taken back.
FUSED_LAYERS = ("to_qkv", "to_kv", "to_added_qkv")


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that PEFT has wrapped, by module name; they hold the adapters of everybody."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def component_of(model: nn.Module) -> str:
    """What a pipeline calls such a denoiser: `unet` or `transformer`."""
    return (
        "unet" if any(isinstance(module, Transformer2DModel) for module in model.modules()) else "transformer"
    )


def check_separate_qkv(model: nn.Module) -> None:
    """Refuses fused QKV projections.

    Raises:
        ValueError: there are some; the message names the first module.
    """
    if fused := next((name for name, module in model.named_modules() if _is_fused_qkv(module)), None):
        raise ValueError(
            f"The QKV projections of {fused} are fused, which bypasses adapters on to_q, to_k and to_v. Call "
            "unfuse_qkv_projections() first."
        )


def _is_fused_qkv(module: nn.Module) -> bool:
    if isinstance(module, Attention):
        # Its flag stays set when the model goes back to the separate projections; the processor is told.
        return type(module.processor).__name__.startswith("Fused")
    return bool(getattr(module, "fused_projections", False))


def target_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that an SPM adapts, by module name; layers that PEFT has wrapped are given unwrapped.

    In a UNet: each `Linear` and `Conv2d` below a `Transformer2DModel` (the projections in and out, the
    attentions' four, the feed-forward's two), as in the released code. In a transformer denoiser, which has
    none inside: each `Linear` of the attentions and `FeedForward`s. Embeddings, norms and what a block keeps
    as plain layers of its own stay as they are.

    Raises:
        ValueError: no such layer, or fused QKV projections, which would bypass an adapter.
    """
    check_separate_qkv(model)
    homes: tuple[type, ...]
    kinds: tuple[type, ...]
    if component_of(model) == "unet":
        homes, kinds = (Transformer2DModel,), (nn.Linear, nn.Conv2d)
    else:
        homes, kinds = (Attention, AttentionModuleMixin, FeedForward), (nn.Linear,)
    found = dict(_below(model, "", homes, kinds, inside=False))
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention or feed-forward layers to put an SPM on.")
    return found


def _below(
    module: nn.Module, name: str, homes: tuple[type, ...], kinds: tuple[type, ...], inside: bool
) -> Iterator[tuple[str, nn.Module]]:
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if isinstance(base, kinds):
        if inside:
            yield name, base
        return
    inside = inside or isinstance(module, homes)
    for child, submodule in module.named_children():
        if child in FUSED_LAYERS:
            continue
        yield from _below(submodule, f"{name}.{child}" if name else child, homes, kinds, inside)


def check_adapter_name(name: str) -> None:
    """Refuses names that cannot be both a module's and a file's.

    Raises:
        TypeError: no string.
        ValueError: other characters than letters, digits, `_` and `-`, or a name that a PyTorch container
            has for itself.
    """
    if not isinstance(name, str):
        raise TypeError(f"An adapter name should be a string, not {name!r}.")
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"{name!r} cannot be an adapter name: use letters, digits, '_' and '-' only.")
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{name!r} cannot be an adapter name: PyTorch keeps it for itself. Take another.")


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters in a model, SPMs or not, in the order of their arrival."""
    return list(dict.fromkeys(name for layer in lora_layers(model).values() for name in layer.lora_A))


def active_adapters(model: nn.Module) -> list[str]:
    """The adapters that are switched on; PEFT keeps this list in each layer, and all have the same."""
    first = next((module for module in model.modules() if isinstance(module, LoraLayer)), None)
    return [] if first is None else list(first.active_adapters)


def adapter_layers(model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    """The wrapped layers that hold this adapter, by module name.

    Raises:
        ValueError: the model has no adapter of this name.
    """
    found = {name: layer for name, layer in lora_layers(model).items() if adapter_name in layer.lora_A}
    if not found:
        raise unknown_name("adapter", adapter_name, adapter_names(model))
    return found


def adapter_parameters(model: nn.Module, adapter_name: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter by parameter name: D is `….lora_A.NAME.weight`, U `….lora_B.NAME.weight`.

    Raises:
        ValueError: the model has no adapter of this name.
    """
    return {
        f"{name}.{part}.{adapter_name}.weight": getattr(layer, part)[adapter_name].weight
        for name, layer in adapter_layers(model, adapter_name).items()
        for part in ("lora_A", "lora_B")
    }


def inject(
    model: nn.Module,
    adapter_name: str,
    *,
    rank: int = 1,
    alpha: float = 1.0,
    layers: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Adds an untrained adapter, active beside those that are; the model computes what it did before.

    Afterwards only this adapter's weights require gradients.

    Args:
        model: a denoiser; changed in place.
        adapter_name: letters, digits, `_` and `-`.
        rank: r, at least 1.
        alpha: α; the update is scaled by α / r.
        layers: names of the layers; by default all of `target_layers`.
        generator: draws D; by default PyTorch's global one.

    Raises:
        TypeError: a name that is no string.
        ValueError: a name that is taken or not allowed, rank below 1, α not positive and finite, a layer that
            is none of `target_layers`, adapters that are fused into the weights, or as `target_layers`.
    """
    check_adapter_name(adapter_name)
    if adapter_name in adapter_names(model):
        raise ValueError(f"There is an adapter {adapter_name!r} already; delete it or take another name.")
    if rank < 1 or rank != int(rank):
        raise ValueError(f"rank is {rank}; it must be a whole number of at least 1.")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}; it must be positive and finite.")
    targets = target_layers(model)
    names = list(targets if layers is None else layers)
    for name in names:
        if name not in targets:
            raise unknown_name("layer", name, targets)
    if is_fused(model):
        raise ValueError("Adapters are fused into the weights; a new one would not act. Unfuse them first.")
    before, off = active_adapters(model), any(layer.disable_adapters for layer in lora_layers(model).values())
    config = LoraConfig(r=int(rank), lora_alpha=alpha, target_modules=names)  # type: ignore[arg-type]
    # PEFT draws from the global generator and warns of a second adapter.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        if isinstance(model, PeftAdapterMixin):
            model.add_adapter(config, adapter_name)
        else:
            inject_adapter_in_model(config, model, adapter_name)
    for layer in adapter_layers(model, adapter_name).values():
        weight = layer.lora_A[adapter_name].weight
        if not weight.is_meta:
            drawn = torch.empty(weight.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            weight.data.copy_(drawn)
    # Adding an adapter makes it the only active one and, on layers that had none, switches it on.
    set_active(model, [*before, adapter_name])
    if off:
        _switch(model, on=False)
    model.requires_grad_(False)
    for parameter in adapter_parameters(model, adapter_name).values():
        parameter.requires_grad_(True)


def remove(model: nn.Module, adapter_name: str) -> None:
    """Takes one adapter out; the last one takes PEFT's wrappers with it. The others stay as they are.

    Raises:
        ValueError: the model has no adapter of this name, or it is fused into the weights.
    """
    layers = adapter_layers(model, adapter_name)
    if any(adapter_name in layer.merged_adapters for layer in layers.values()):
        raise ValueError(f"Adapter {adapter_name!r} is fused into the weights; unfuse it first.")
    # Deleting an active adapter can make PEFT switch on one that the user had switched off.
    set_active(model, [name for name in active_adapters(model) if name != adapter_name])
    if isinstance(model, PeftAdapterMixin):
        model.delete_adapters(adapter_name)
    else:
        for layer in layers.values():
            layer.delete_adapter(adapter_name)
        model.peft_config.pop(adapter_name, None)  # type: ignore[operator, union-attr]
    if not adapter_names(model):
        if isinstance(model, PeftAdapterMixin):
            model.unload_lora()
        else:
            recurse_remove_peft_layers(model)
            del model.peft_config


def is_fused(model: nn.Module) -> bool:
    """Whether an adapter is merged into the weights of a layer."""
    return any(layer.merged for layer in lora_layers(model).values())


@contextmanager
def same_gradients(model: nn.Module) -> Iterator[None]:
    """PEFT couples switching adapters with `requires_grad`; here that stays as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    yield
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def set_active(model: nn.Module, names: list[str]) -> None:
    """Switches on exactly these adapters, at the weights that they have."""
    with same_gradients(model):
        for layer in lora_layers(model).values():
            layer.set_adapter(list(dict.fromkeys(names)))


def _switch(model: nn.Module, on: bool) -> None:
    with same_gradients(model):
        for layer in lora_layers(model).values():
            layer.enable_adapters(on)


def enable(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Switches on exactly these adapters, each with its weight γ of equation (1); all others are off.

    Raises:
        ValueError: the model has no adapter of such a name.
    """
    known = adapter_names(model)
    for name in weights:
        if name not in known:
            raise unknown_name("adapter", name, known)
    with same_gradients(model):
        set_weights_and_activate_adapters(model, list(weights), list(weights.values()))
    _switch(model, on=True)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """All adapters off inside; afterwards each layer's are as they were. Gradients are not touched."""
    were_on = [layer for layer in lora_layers(model).values() if not layer.disable_adapters]
    with same_gradients(model):
        for layer in were_on:
            layer.enable_adapters(False)
    try:
        yield
    finally:
        with same_gradients(model):
            for layer in were_on:
                layer.enable_adapters(True)
