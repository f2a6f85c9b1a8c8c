"""SPMs that are open by another amount for each sample of a batch.

With k adapters of strengths γ_1 … γ_k for a sample, a layer computes

    y = W x + Σ_c γ_c (α_c / r_c) U_c D_c x                                            (9) of the paper
      = W x + U (γ ⊙ D x),   D_c stacked as rows, (α_c / r_c) U_c as columns

The second line is one pass for any number of adapters. PEFT's own loop makes one for each, which costs
several times the layer itself for ten; so inside `gated` PEFT leaves the SPMs out and each of its layers has
another forward, which adds them. Prompts of equal γ, a single one above all, have it in U; and float32 layers
that nobody else has a hand in then use W + U D, made once (half precision would round the update away).
The released code multiplies every tensor of an adapter by γ and adds the adapters up, which gives γ² for one
and spurious products of two; `squared` takes the γ² without those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .layers import active_adapters, lora_layers, set_active

LINEAR, SQUARED = MODES = ("linear", "squared")


class Gates:
    """Strengths of k adapters for each prompt, laid out over a denoiser's batch.

    Pipelines repeat each prompt for its images, and then the whole batch for classifier-free guidance: row b
    of a batch belongs to prompt (b mod P n) // n.

    Args:
        strengths: (P, k).
        images_per_prompt: n.
    """

    def __init__(self, strengths: Tensor, images_per_prompt: int):
        # What all rows have in common goes into the adapters.
        self.common = strengths[0] if bool((strengths == strengths[0]).all()) else None
        if self.common is not None:
            strengths, images_per_prompt = torch.ones_like(strengths), 1
        self.strengths = strengths.repeat_interleave(images_per_prompt, dim=0)
        self.scale = 1.0

    @property
    def by_row(self) -> bool:
        """Whether there is anything to multiply the rows of a batch with."""
        return self.common is None or self.scale != 1

    def read_scale(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pre-hook of the denoiser: Diffusers scales adapters that PEFT runs by an argument of the call."""
        options = [value for name, value in kwargs.items() if name.endswith("attention_kwargs") and value]
        self.scale = float(options[0].get("scale", 1.0)) if options else 1.0

    def rows(self, columns: Sequence[int], batch: int) -> Tensor:
        """Strengths (batch, len(columns)) of these adapters for the samples of a batch.

        Raises:
            ValueError: the batch is no multiple of the prompts' images.
        """
        copies, rest = divmod(batch, len(self.strengths))
        if rest or not copies:
            raise ValueError(
                f"The denoiser got a batch of {batch}, which is no multiple of the prompts' "
                f"{len(self.strengths)} images. Give the prompts and num_images_per_prompt of this call."
            )
        return self.strengths[:, list(columns)].repeat(copies, 1) * self.scale


class GatedLayer:
    """The forward of a layer of PEFT with the stacked SPMs, equation (9), in place of PEFT's own.

    Args:
        layer: a layer of PEFT.
        names: the SPMs, in the order of `gates`' columns; those that the layer lacks are passed over.
        squared: an adapter's weight is squared.
        gates: shared by all layers.
        others: other adapters act on the layer, by PEFT.
    """

    def __init__(self, layer: LoraLayer, names: Sequence[str], squared: bool, gates: Gates, others: bool):
        downs, ups, columns = [], [], list[int]()
        for column, name in enumerate(names):
            if name not in layer.lora_A:
                continue
            scale = layer.scaling[name]
            if squared:
                # PEFT's scaling is f α/r with the user's weight f; what is wanted is f² α/r.
                scale *= scale * layer.r[name] / layer.lora_alpha[name]
            up = layer.lora_B[name].weight.detach() * scale
            downs.append(layer.lora_A[name].weight.detach())
            ups.append(up if gates.common is None else up * gates.common[column].to(up.device, up.dtype))
            columns += [column] * layer.r[name]
        self.down, self.up = torch.cat(downs), torch.cat(ups, dim=1)
        if self.down.is_meta:
            raise ValueError("The denoiser is offloaded layer by layer, which gates cannot follow.")
        self.columns, self.gates = columns, gates
        self._kept: tuple[Any, Tensor | None, Tensor] = (None, None, self.up)
        self.base = layer.get_base_layer()
        # PEFT's forward costs as much as a small layer; somebody else's may move weights.
        needed = others or "forward" in vars(layer)
        self.inner = layer.forward if needed else self.base  # type: ignore[attr-defined]
        self.merged = None if needed or gates.common is None else self._merged()

    def _merged(self) -> Tensor | None:
        """W + U D, where the base layer is PyTorch's own, in float32, and does nothing but its product."""
        base, weight = self.base, self.base.weight
        touched = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
        if type(base) not in (nn.Linear, nn.Conv2d) or weight.dtype != torch.float32 or touched:
            return None
        update = self.up.flatten(1) @ self.down.flatten(1)
        return torch.add(weight.detach(), update.to(weight.device, weight.dtype).view_as(weight))

    def _gates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """γ of the samples of x, (B, 1, …, k) or (B, k, 1, 1) by the layer's kind, or None where it is in U;
        and Uᵀ (k, out). A single row of Uᵀ takes γ in, with the output's dimensions. All of it is the same
        from step to step, so it is kept.
        """
        key = (len(x), self.gates.scale)
        if self._kept[0] != key or self._kept[2].device != x.device:
            up = self.up.flatten(1).T.to(x.device, dtype)
            gates = self.gates.rows(self.columns, len(x)).to(x.device, dtype) if self.gates.by_row else None
            if len(up) == 1:
                gates, up = None, up if gates is None else gates * up
            inner = (1,) * (x.ndim - 2)
            if self.down.ndim > 2:
                gates = None if gates is None else gates[:, :, None, None]
                up = up[:, :, None, None] if len(self.down) == 1 else up
            elif len(self.down) == 1:
                up = up.view(len(up), *inner, -1)
            else:
                gates = None if gates is None else gates.view(len(x), *inner, -1)
            self._kept = (key, gates, up)
        return self._kept[1:]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.merged is not None and not self.gates.by_row and self.merged.device == x.device:
            if self.merged.ndim == 2:
                return F.linear(x, self.merged, self.base.bias)
            return self.base._conv_forward(x, self.merged, self.base.bias)
        output = self.inner(x, *args, **kwargs)
        if self.down.device != x.device:
            self.down = self.down.to(x.device)
        gates, up = self._gates(x, output.dtype)
        x = x.to(self.down.dtype)
        if self.down.ndim == 2:
            h = F.linear(x, self.down)
        else:
            h = F.conv2d(x, self.down, None, self.base.stride, self.base.padding, self.base.dilation)
        h = h.to(output.dtype)
        # In place below: what the base layer has just made is nobody else's.
        if len(self.down) == 1:
            return output.addcmul_(h, up)
        if gates is not None:
            h = h * gates
        if self.down.ndim == 2:
            return output.flatten(0, -2).addmm_(h.flatten(0, -2), up).view(output.shape)
        return output.add_(F.conv2d(h, up.T[:, :, None, None]))


def _owner(layer: nn.Module) -> Any:
    """Whose method a layer's forward is, if somebody has put one there."""
    return getattr(vars(layer).get("forward"), "__self__", None)


@contextmanager
def gated(
    model: nn.Module, strengths: dict[str, Tensor], images_per_prompt: int = 1, mode: str = LINEAR
) -> Iterator[None]:
    """Inside, these adapters act by prompt; all other adapters act as they did. Nothing remains afterwards.

    Adapters of `strengths` that are switched off, or all if adapters are disabled, stay off.

    Args:
        model: the denoiser.
        strengths: by adapter name, γ of each prompt (P,). The adapter's own weight multiplies it.
        images_per_prompt: how many images in a row belong to one prompt.
        mode: `linear`: weight times γ; `squared`: (weight times γ)².

    Raises:
        ValueError: gates within gates; in the denoiser's call, a batch that is no multiple of the prompts'
            images.
    """
    wrapped = lora_layers(model).values()
    if any(isinstance(_owner(layer), GatedLayer) for layer in wrapped):
        raise ValueError("The SPMs are open for other prompts already: one transport may not hold another.")
    active = active_adapters(model)
    names = [name for name in strengths if name in active]
    others = [name for name in active if name not in names]
    layers = [
        layer
        for layer in wrapped
        if not layer.disable_adapters and any(name in layer.lora_A for name in names)
    ]
    if not layers:
        yield
        return
    gammas = torch.stack([strengths[name] for name in names], dim=1)
    gates = Gates(gammas if mode == LINEAR else gammas**2, images_per_prompt)
    forwards = [
        GatedLayer(layer, names, mode == SQUARED, gates, any(name in layer.lora_A for name in others)).forward
        for layer in layers
    ]
    hook = model.register_forward_pre_hook(gates.read_scale, with_kwargs=True)
    # Whoever has put a forward on a layer gets it back.
    before = [vars(layer).get("forward") for layer in layers]
    # Where PEFT's forward still runs, it shall leave the SPMs out.
    peft_runs = bool(others) or any(before)
    try:
        if peft_runs:
            set_active(model, others)
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward  # type: ignore[attr-defined]
        yield
    finally:
        hook.remove()
        for layer, old in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if old is not None:
                layer.forward = old  # type: ignore[attr-defined]
        if peft_runs:
            set_active(model, active)
