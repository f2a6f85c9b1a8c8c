"""Putting steering processors into the attention layers of a model that read text, and taking them out again.

Self-attention is left alone, whatever processor it has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from .processors import (
    NASAAttnProcessor2_0,
    NASAFluxAttnProcessor,
    NASAJointAttnProcessor2_0,
    _JointProcessor,
    _SteeredProcessor,
)
from .steering import Steering

# The ones that compute plain attention, exactly: a subclass may do anything.
STAND_INS: dict[type, type[_SteeredProcessor]] = {
    AttnProcessor2_0: NASAAttnProcessor2_0,
    AttnProcessor: NASAAttnProcessor2_0,
    SlicedAttnProcessor: NASAAttnProcessor2_0,
    XFormersAttnProcessor: NASAAttnProcessor2_0,
    JointAttnProcessor2_0: NASAJointAttnProcessor2_0,
    FluxAttnProcessor: NASAFluxAttnProcessor,
}


def _reads_text(module: nn.Module) -> bool:
    if isinstance(module, FluxAttention):
        return True
    return isinstance(module, Attention) and (
        module.is_cross_attention or module.added_kv_proj_dim is not None
    )


def _stand_in(name: str, layer: Any, steering: Steering) -> _SteeredProcessor:
    kind = type(layer.processor)
    # Fusing gives an `Attention` another processor; a `FluxAttention` keeps its own, which looks at this.
    fused = "Fused" in kind.__name__ or (isinstance(layer, FluxAttention) and layer.fused_projections)
    if fused or kind not in STAND_INS:
        if fused:
            why = "its projections are fused; call unfuse_qkv_projections() first"
        elif issubclass(kind, _SteeredProcessor):
            why = "it is steered already; leave that first"
        elif "IPAdapter" in kind.__name__:
            why = "call pipe.unload_ip_adapter() first"
        else:
            why = f"supported are {', '.join(sorted(known.__name__ for known in STAND_INS))}"
        raise ValueError(f"Attention layer {name} with processor {kind.__name__} cannot be steered: {why}.")
    processor = STAND_INS[kind](steering)
    for setting in ("_attention_backend", "_parallel_config"):
        setattr(processor, setting, getattr(layer.processor, setting, None))
    return processor


class SteeredLayers:
    """The layers of a model that read text, with the processors that steer them.

    Args:
        model: a denoiser or ControlNet: `UNet2DConditionModel`, `PixArtTransformer2DModel` and others built
            of Diffusers' `Attention`; experimental: `SD3Transformer2DModel`, `FluxTransformer2DModel`. It may
            be compiled, and may have LoRA layers.
        steering: what the layers share; may be changed while they are installed.

    Raises:
        ValueError: no layer reads text, or one has a processor that cannot be replaced (IP-Adapter, fused
            projections, another guidance, steered already).
    """

    def __init__(self, model: nn.Module, steering: Steering):
        self.model: nn.Module = model._orig_mod if is_compiled_module(model) else model  # type: ignore
        self.steering = steering
        layers = {name: m for name, m in self.model.named_modules() if _reads_text(m)}
        if not layers:
            raise ValueError(
                f"{type(self.model).__name__} has no attention layer that reads text: nothing to steer."
            )
        self.layers: list[tuple[str, Any, _SteeredProcessor]] = [
            (name, layer, _stand_in(name, layer, steering)) for name, layer in layers.items()
        ]
        self._plain: list[Any] = []
        self._hook: Any = None
        if any(isinstance(processor, _JointProcessor) for _, _, processor in self.layers):
            warnings.warn(
                f"Steering the joint attention of {type(self.model).__name__} is experimental.", stacklevel=3
            )

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def installed(self) -> bool:
        return self._hook is not None

    def install(self) -> None:
        """
        Raises:
            RuntimeError: they are installed.
        """
        if self.installed:
            raise RuntimeError("These layers are steered already.")
        self._plain = [layer.processor for _, layer, _ in self.layers]
        for _, layer, processor in self.layers:
            layer.set_processor(processor)
        # A partial, not a closure: `copy.deepcopy` gives the copy's hook the copy's layers.
        self._hook = self.model.register_forward_pre_hook(partial(_check_before_call, self))

    def remove(self) -> None:
        """Gives every layer the processor object back that it had; nothing happens if not installed."""
        if self.installed:
            self._hook.remove()
            self._hook = None
            for (_, layer, _), processor in zip(self.layers, self._plain, strict=True):
                layer.set_processor(processor)
            self._plain = []

    def check(self) -> None:
        """
        Raises:
            RuntimeError: a later call gave a layer another processor, so that it is not steered any more.
        """
        for name, layer, processor in self.layers:
            if layer.processor is not processor:
                raise RuntimeError(
                    f"Attention layer {name} is not steered any more: a later call gave it the processor "
                    f"{type(layer.processor).__name__}. Do not call set_attn_processor, "
                    "enable_attention_slicing, enable_xformers_memory_efficient_attention or load_ip_adapter "
                    "while steering is on; for a faster attention call set_attention_backend."
                )

    @contextmanager
    def active(self) -> Iterator[SteeredLayers]:
        """Installed within a `with` block; checks at its end that they still are."""
        self.install()
        try:
            yield self
            self.check()
        finally:
            self.remove()


def _check_before_call(layers: SteeredLayers, _model: nn.Module, _args: tuple[Any, ...]) -> None:
    # A compiled graph is not to be broken, nor guarded, by this; there the check at the end remains.
    if not torch.compiler.is_compiling():
        layers.check()
