"""One bit a weight: layers for inference, and their file.

A file is one `packed.safetensors`: of each binary layer `NAME.bits`, uint8 (outputs, ⌈inputs / 8⌉) with the
first weight in the lowest bit and 1 for +1, its α and bias; all other tensors of the module as they are; and
a header as in `files`. The latent numbers and the frequency are not in it.

Inference is simulated by default: bits become a tensor of -1 and 1 for the time of a call, multiplied by
PyTorch's float kernels. `arithmetic="bits"` counts on the packed bytes instead, w · x = n - 2 popcount(w xor
x) over the n places that are no padding. PyTorch has no popcount of its own, so that is a table look-up:
exact, and slower than the simulation. Neither is a kernel for speed; what is saved here is size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import FileFormatError, unknown_name
from .._bits import pack, unpack
from .converting import binary_layers, replace
from .files import fill, read, write
from .layers import BinaryLayer, BiPerConv2d, ConvProduct, LinearProduct, Product

FILE = "packed.safetensors"
ARITHMETIC = ("float", "bits")
_POPCOUNT = torch.tensor([value.bit_count() for value in range(256)])


def pack_rows(signs: Tensor) -> Tensor:
    """(..., n) of which positive numbers are 1 and others 0 -> uint8 (..., ⌈n / 8⌉)."""
    padded = F.pad((signs > 0).to(torch.uint8), (0, -signs.shape[-1] % 8))
    return pack(padded, 1).view(*signs.shape[:-1], -1)


def unpack_rows(bits: Tensor, count: int) -> Tensor:
    """The inverse of `pack_rows`: float32 (..., count) of -1 and 1."""
    flags = unpack(bits.flatten(), 1, bits.numel() * 8).view(*bits.shape[:-1], -1)[..., :count]
    return 2.0 * flags - 1


def xnor_dot(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
    """Products of rows of signs, on bits.

    Args:
        x: uint8 (N, bytes).
        w: uint8 (outputs, bytes).
        mask: uint8 (N or 1, bytes), 1 where x holds a sign and not padding.

    Returns:
        float32 (N, outputs) of whole numbers.
    """
    table = _POPCOUNT.to(x.device)
    places = table[mask.long()].sum(-1)
    # One output at a time: all at once would need N x outputs x bytes.
    differing = [table[((x ^ row) & mask).long()].sum(-1) for row in w]
    return torch.stack([places - 2 * count for count in differing], dim=-1).float()


class _Packed(Product):
    """Bits, α and bias.

    Args:
        shape: of the weights.
        has_bias: whether there is one.
        binarize_input: as the trained layer has it.
        arithmetic: "float", the simulation, or "bits".
    """

    bits: Tensor
    looked = True  # who trained it has been told

    def __init__(self, shape: tuple[int, ...], has_bias: bool, binarize_input: bool, arithmetic: str):
        super().__init__()
        if arithmetic not in ARITHMETIC:
            raise unknown_name("arithmetic", arithmetic, ARITHMETIC)
        if arithmetic == "bits" and not binarize_input:
            raise ValueError("Arithmetic on bits needs inputs that are binary too.")
        self.shape, self.binarize_input, self.arithmetic = shape, binarize_input, arithmetic
        self.count = math.prod(shape[1:])
        self.register_buffer("bits", torch.zeros(shape[0], math.ceil(self.count / 8), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(shape[0]))
        self.register_buffer("bias", torch.zeros(shape[0]) if has_bias else None)

    def binary_weight(self) -> Tensor:
        """float32 of -1 and 1."""
        return unpack_rows(self.bits, self.count).view(self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape}, arithmetic={self.arithmetic!r}"


class PackedConv2d(_Packed, ConvProduct):
    """A convolution of packed weights, made by `load_packed`."""

    def __init__(self, shape: tuple[int, ...], has_bias: bool, about: Mapping[str, Any], arithmetic: str):
        super().__init__(shape, has_bias, bool(about["binarize_input"]), arithmetic)
        self.stride, self.dilation = tuple(about["stride"]), tuple(about["dilation"])
        self.pads, self.groups = [int(n) for n in about["pads"]], int(about["groups"])
        self.pad_value = float(about["pad_value"])
        if arithmetic == "bits" and self.groups > 1:
            raise ValueError(f"Arithmetic on bits takes convolutions of one group, not {self.groups}.")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        if self.arithmetic == "float":
            return self.product(x, self.binary_weight())
        size = [
            (n + a + b - d * (k - 1) - 1) // s + 1
            for n, a, b, d, k, s in zip(
                x.shape[2:], self.pads[2::-2], self.pads[3::-2], self.dilation, self.shape[2:], self.stride,
                strict=True,
            )
        ]  # fmt: skip
        columns = self._columns(F.pad(self.signs_of(x), self.pads, value=self.pad_value))
        inside = F.pad(torch.ones_like(x[:1]), self.pads, value=self.pad_value)
        mask = pack_rows(self._columns(inside)).repeat(len(x), 1)
        found = xnor_dot(pack_rows(columns), self.bits, mask).to(x.dtype)
        return self.scaled(found.view(len(x), *size, -1).permute(0, 3, 1, 2), -3)

    def _columns(self, x: Tensor) -> Tensor:
        """(B, in, H, W), padded -> (B H' W', in k k)."""
        found = F.unfold(x.float(), self.shape[2:], self.dilation, 0, self.stride)
        return found.transpose(1, 2).flatten(0, 1)


class PackedLinear(_Packed, LinearProduct):
    """A linear layer of packed weights, made by `load_packed`."""

    def __init__(self, shape: tuple[int, ...], has_bias: bool, about: Mapping[str, Any], arithmetic: str):
        super().__init__(shape, has_bias, bool(about["binarize_input"]), arithmetic)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        if self.arithmetic == "float":
            return self.product(x, self.binary_weight())
        rows = self.signs_of(x).flatten(0, -2)
        mask = pack_rows(torch.ones_like(rows[:1]))
        found = xnor_dot(pack_rows(rows), self.bits, mask).to(x.dtype)
        return self.scaled(found.view(*x.shape[:-1], -1), -1)


def _about(layer: BinaryLayer) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(layer.weight.shape), "binarize_input": layer.binarize_input}
    if isinstance(layer, BiPerConv2d):
        for key in ("stride", "dilation", "groups", "pads", "pad_value"):
            value = getattr(layer, key)
            found[key] = list(value) if isinstance(value, tuple | list) else value
    return found


@torch.no_grad()
def export_packed(model: nn.Module, folder: str | os.PathLike) -> int:
    """Writes a module whose binary layers take one bit a weight.

    Args:
        model: with binary layers, all of them in stage "binary".
        folder: where `packed.safetensors` goes.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: no binary layer, or some in stage "real", whose weights are not binary.
    """
    layers = binary_layers(model)
    if real := [name for name, layer in layers.items() if layer.stage == "real"]:
        raise ValueError(f"Only binary weights can be packed; in stage 'real': {', '.join(real)}.")
    tensors = dict(model.state_dict())
    for name, layer in layers.items():
        for key in ("weight", "saved_omega"):
            del tensors[f"{name}.{key}"]
        tensors[f"{name}.bits"] = pack_rows(layer.binary_weight().flatten(1))
    path = Path(folder) / FILE
    write(path, tensors, {"layers": {name: _about(layer) for name, layer in layers.items()}})
    return path.stat().st_size


def load_packed(model: nn.Module, folder: str | os.PathLike, *, arithmetic: str = "float") -> nn.Module:
    """Puts packed layers into a module of the architecture that was exported; for inference only.

    Args:
        model: the same module before or after `binarize`; changed in place.
        folder: what `export_packed` wrote.
        arithmetic: "float" (simulated) or "bits"; the same numbers up to nothing: sums of signs are exact.

    Returns:
        The module, in eval mode.

    Raises:
        FileFormatError: missing, truncated or foreign files, or another architecture.
        ValueError: an unknown arithmetic, or "bits" where layers do not allow it.
    """
    if arithmetic not in ARITHMETIC:
        raise unknown_name("arithmetic", arithmetic, ARITHMETIC)
    path = Path(folder) / FILE
    tensors, header = read(path)
    made: dict[str, Product] = {}
    for name, about in header["layers"].items():
        try:
            old, shape = model.get_submodule(name), tuple(about["shape"])
            if tuple(old.weight.shape) != shape:  # type: ignore[arg-type]
                raise TypeError(f"{name} is {tuple(old.weight.shape)}, not {shape}")  # type: ignore[arg-type]
            kind = PackedConv2d if len(shape) == 4 else PackedLinear
            layer = kind(shape, old.bias is not None, about, arithmetic)
        except (AttributeError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path} does not fit this {type(model).__name__}: {error}") from error
        made[name] = layer.to(old.weight.device)  # type: ignore[arg-type]
    for name, layer in made.items():
        replace(model, name, layer)
    fill(model, tensors, path)
    return model.eval()
