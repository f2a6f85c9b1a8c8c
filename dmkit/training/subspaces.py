"""Where the inputs of linear layers lie. A layer y = W x + b is read as the matrix [W b] that acts on [x; 1],
and a convolution as the same on its patches: gradients of [W b] are then combinations of inputs, row by row,
so that a change whose rows are orthogonal to some inputs leaves the layer's answer to them as it was.

    R      inputs as columns, (d, n)
    R'     = Q T, the triangle T (d, d) has all that is asked of R: |B'R| = |T B|, the same singular values
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer: TypeAlias = nn.Linear | nn.Conv2d
# Singular values below this share of |R| are rounding.
NEGLIGIBLE = 1e-8


def check_layer(name: str, layer: nn.Module) -> None:
    """Refuses what is not one matrix.

    Raises:
        TypeError: neither `Linear` nor `Conv2d`.
        ValueError: a convolution in groups.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"{name} is a {type(layer).__name__}; only Linear and Conv2d layers are known here.")
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise ValueError(f"{name} is a convolution in {layer.groups} groups, which is not supported.")


def joined(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[W b] (out, d) of a weight (out, ...) and a bias (out,); a copy if there is a bias, else a view."""
    flat = weight.flatten(1)
    return flat if bias is None else torch.cat([flat, bias[:, None]], dim=1)


def matrix(layer: Layer) -> Tensor:
    """[W b] (out, d) of a layer; a kernel's columns are in the order of `unfold`, channel by channel."""
    return joined(layer.weight, layer.bias)


def gradient_matrix(layer: Layer) -> Tensor:
    """The gradient of [W b] (out, d) that a backward pass left; zero where it left none."""
    grads = [None if p is None else torch.zeros_like(p) if p.grad is None else p.grad for p in _pair(layer)]
    return joined(grads[0], grads[1])  # type: ignore[arg-type]


def parts(layer: Layer, joint: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of [W b] (out, d); the inverse of `joined`."""
    if layer.bias is None:
        return joint.reshape(layer.weight.shape), None
    return joint[:, :-1].reshape(layer.weight.shape), joint[:, -1]


def _pair(layer: Layer) -> tuple[nn.Parameter, nn.Parameter | None]:
    return layer.weight, layer.bias


def input_rows(layer: Layer, inputs: Tensor) -> Tensor:
    """The inputs that a layer's matrix acts on, as rows (n, d); every patch of a convolution is one."""
    if isinstance(layer, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)  # also of padding="same"
        kernel: Any = layer.kernel_size
        patches = F.unfold(padded, kernel, dilation=layer.dilation, stride=layer.stride)  # type: ignore[arg-type]
        rows = patches.transpose(1, 2).flatten(0, 1)
    return rows if layer.bias is None else F.pad(rows, (0, 1), value=1.0)


def energy_rank(energies: Tensor, total: float, share: float) -> int:
    """The fewest leading energies that reach a share of the total; all that are not rounding, if none do.

    Args:
        energies: (k,) squared singular values, falling.
        total: the energy of everything, |R|².
        share: in (0, 1].
    """
    kept = int((energies > NEGLIGIBLE**2 * total).sum())
    reached = energies.double().cumsum(0) >= share * total * (1 - 1e-12)
    return min(kept, int((~reached).sum()) + 1)


class InputSpan:
    """What is remembered of a layer's inputs: T of the module's docstring, in float64, whatever their number.

    Rows are gathered by QR, which, unlike adding up R R', does not square the condition.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Takes (n, d) inputs."""
        self._rows.append(rows.detach().to("cpu", torch.float64))
        if sum(map(len, self._rows)) > 4 * rows.shape[1]:
            self._reduce()

    def _reduce(self) -> Tensor:
        rows = torch.cat(self._rows)
        if len(rows) > rows.shape[1]:
            rows = torch.linalg.qr(rows, mode="r").R
        self._rows = [rows]
        return rows

    def total(self) -> float:
        """|R|²."""
        return float(self._reduce().square().sum())

    def energies(self, basis: Tensor) -> Tensor:
        """|bᵢ'R|² of each column of an orthonormal basis (d, r), float64 (r,)."""
        return (self._reduce() @ basis.to("cpu", torch.float64)).square().sum(0)

    def outside(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """The directions of the inputs outside a basis (d, r).

        Returns:
            Left singular vectors (d, k) of R - B B'R, orthonormal and orthogonal to B, and their energies
            (k,), falling; float64.
        """
        rows, basis = self._reduce(), basis.to("cpu", torch.float64)
        total = rows.square().sum()
        for _ in range(2):  # once leaves what rounding has left of B; twice is enough
            rows = rows - (rows @ basis) @ basis.T
        _, sigma, right = torch.linalg.svd(rows, full_matrices=False)
        kept = sigma > NEGLIGIBLE * total.sqrt()
        return right[kept].T.contiguous(), sigma[kept].square()


@contextmanager
def observing(layers: Mapping[str, Layer]) -> Iterator[dict[str, InputSpan]]:
    """Gathers the inputs of every call of some layers; a layer that is not called has no entry."""
    spans: dict[str, InputSpan] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def gather(module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
                spans.setdefault(name, InputSpan()).add(input_rows(module, args[0].detach()))

            hooks.callback(layer.register_forward_pre_hook(gather).remove)
        yield spans
