"""Convolutions and linear layers of binary weights and inputs, equation (3).

What a layer computes does not depend on whether its weights are latent numbers or packed bits: both kinds
share `Product`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ....errors import unknown_name
from . import inputs
from .functions import ActivationSign, check_omega, square_wave, wave

STAGES = ("real", "binary")
# Added to a sample's variance, so that a constant one can be divided by its deviation.
TINY = 1e-5


def check(source: nn.Conv2d | nn.Linear, omega: float | None, stage: str, pad_value: float = 0) -> None:
    """Whether a plain layer can be made binary.

    Raises:
        ValueError: see `BiPerConv2d`.
    """
    check_omega(omega)
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    if pad_value not in (0, 1):
        raise ValueError(f"pad_value is 0 or 1, not {pad_value!r}.")
    if isinstance(source, nn.Conv2d) and source.padding_mode != "zeros":
        raise ValueError(f"Only constant padding can be made binary, not {source.padding_mode!r}.")
    weight = source.weight
    if not weight.is_meta and not (weight.isfinite().all() and weight.any()):
        raise ValueError("Weights that are NaN, infinite or all zero cannot be made binary.")


class Product(nn.Module):
    """α (x_b * w_b) + bias, for the w_b that a subclass has.

    Attributes:
        scale: α, (outputs,).
        bias: (outputs,) or None.
        binarize_input: whether x_b is the sign of x, or x itself.
        looked: whether nobody need look any more if inputs have both signs.
        label: the layer's name, for a warning.
    """

    scale: Tensor
    bias: Tensor | None
    binarize_input: bool
    looked: bool = False
    label: str = ""

    def signs_of(self, x: Tensor) -> Tensor:
        """x_b."""
        if not self.binarize_input:
            return x
        if not self.looked and inputs.can_be_looked_at(x):
            self.looked = True  # once: to look is to wait for the device
            if inputs.has_one_sign(x):
                name = self.label or type(self).__name__
                inputs.warn(f"The first input of {name} has one sign only", stacklevel=2)
        if self.training:
            x = x / (x.var(tuple(range(1, x.ndim)), keepdim=True) + TINY).sqrt()
        return ActivationSign.apply(x)

    def scaled(self, product: Tensor, channel: int) -> Tensor:
        """α and bias at a product whose outputs are dimension `channel` (negative)."""
        shape = (-1, *[1] * (-1 - channel))
        product = product * self.scale.view(shape).to(product.dtype)
        return product if self.bias is None else product + self.bias.view(shape).to(product.dtype)


class ConvProduct(Product):
    """Over images (B, in, H, W).

    Attributes:
        stride, dilation, groups: as a `Conv2d` has them.
        pads: what is added left, right, above and below.
        pad_value: 0, a third level beside the signs, or 1.
    """

    stride: Any
    dilation: Any
    groups: int
    pads: Sequence[int]
    pad_value: float

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        x = F.pad(self.signs_of(x), list(self.pads), value=self.pad_value)
        return self.scaled(
            F.conv2d(x, weight.to(x.dtype), None, self.stride, 0, self.dilation, self.groups), -3
        )


class LinearProduct(Product):
    """Over (B, ..., in)."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        x = self.signs_of(x)
        return self.scaled(F.linear(x, weight.to(x.dtype)), -1)


class _Latent:
    """What the two trained layers share: latent weights, a frequency that is saved with them, a stage."""

    weight: nn.Parameter
    scale: nn.Parameter
    saved_omega: Tensor
    omega: float | None
    stage: str
    binarize_input: bool

    def _become(
        self,
        source: Any,
        omega: float | None,
        stage: str,
        binarize_input: bool,
        pretrained: bool,
        generator: Generator | None,
    ) -> None:
        """Takes over a plain layer's parameters; further as `binarize`."""
        self.omega, self.stage, self.binarize_input = omega, stage, binarize_input
        self.weight, self.bias = source.weight, source.bias
        self.scale = nn.Parameter(source.weight.new_empty(len(source.weight)))
        # In the state, so that weights are never read with another frequency.
        device = None if source.weight.is_meta else source.weight.device
        frequency = torch.tensor(self._frequency, device=device)
        self.register_buffer("saved_omega", frequency)  # type: ignore[attr-defined]
        if pretrained:
            self._keep()
        else:
            nn.init.uniform_(self.scale, generator=generator)
        self.train(source.training)  # type: ignore[attr-defined]

    @property
    def _frequency(self) -> float:
        """ω as it is saved: 0 stands for None."""
        return 0.0 if self.omega is None else float(self.omega)

    def check_omega(self, saved: Tensor | None = None) -> None:
        """Whether weights are of this layer's frequency.

        Args:
            saved: what they came with; by default what the layer has read.

        Raises:
            ValueError: they were trained with another one.
        """
        saved = self.saved_omega if saved is None else saved
        # In its own precision: a halved file is still of the frequency that it was.
        if float(saved) != float(torch.tensor(self._frequency).to(saved.dtype)):
            raise ValueError(
                f"These weights are of omega {float(saved) or None}; omega {self.omega} would read other "
                "signs from them."
            )

    @torch.no_grad()
    def _keep(self) -> None:
        """Latent numbers and α with α s(w) equal to the weights as they are."""
        rows = self.weight.flatten(1)
        largest = rows.abs().amax(1)
        self.scale.copy_(torch.where(largest > 0, largest, 1.0) if self.omega else torch.ones_like(largest))
        if self.omega:
            phase = torch.asin((rows.double() / self.scale[:, None].double()).clamp(-1, 1))
            self.weight.copy_((phase / self.omega).view_as(self.weight))

    def effective_weight(self) -> Tensor:
        """w_b: s(w) in stage "real", b(w) in stage "binary", (4)."""
        rule = wave if self.stage == "real" else square_wave
        return rule(self.weight, self.omega)

    def binary_weight(self) -> Tensor:
        """b(w) as int8, -1 and 1, whatever the stage."""
        return square_wave(self.weight.detach(), self.omega).to(torch.int8)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, strict: bool, missing: list,
                              unexpected: list, errors: list) -> None:  # fmt: skip
        try:
            self.check_omega(state.get(f"{prefix}saved_omega"))
        except ValueError as error:
            errors.append(f"{prefix.rstrip('.')}: {error}")
            return  # and nothing of it is read
        rest = (strict, missing, unexpected, errors)
        super()._load_from_state_dict(state, prefix, metadata, *rest)  # type: ignore[misc]
        self.saved_omega.fill_(self._frequency)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, omega={self.omega}, stage={self.stage!r}"  # type: ignore[misc]


class BiPerConv2d(_Latent, ConvProduct, nn.Conv2d):
    """A `Conv2d` with binary weights and inputs. Made from a plain one, whose parameters it takes over.

    Args:
        source: the plain layer, of any stride, padding, dilation and groups.
        omega: ω; None for the sign with a straight-through gradient.
        stage: "real" or "binary", (4).
        binarize_input: whether the input is made binary too.
        pretrained: as for `binarize`.
        pad_value: 0, as in the paper, or 1, which leaves two levels at the border.
        generator: of α ~ U[0, 1).

    Raises:
        ValueError: a frequency that is not positive, an unknown stage, weights that are zero or not finite,
            another padding than by a constant, or another `pad_value`.
    """

    def __init__(
        self,
        source: nn.Conv2d,
        omega: float | None = 20.0,
        *,
        stage: str = "real",
        binarize_input: bool = True,
        pretrained: bool = False,
        pad_value: float = 0,
        generator: Generator | None = None,
    ):
        check(source, omega, stage, pad_value)
        nn.Conv2d.__init__(
            self, source.in_channels, source.out_channels, source.kernel_size, source.stride, source.padding,
            source.dilation, source.groups, source.bias is not None, device="meta",
        )  # fmt: skip
        self.pads, self.pad_value = source._reversed_padding_repeated_twice, float(pad_value)
        self._become(source, omega, stage, binarize_input, pretrained, generator)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, in, H, W) -> (B, out, H', W')."""
        return self.product(x, self.effective_weight())


class BiPerLinear(_Latent, LinearProduct, nn.Linear):
    """A `Linear` with binary weights and inputs; arguments and errors as for `BiPerConv2d`."""

    def __init__(
        self,
        source: nn.Linear,
        omega: float | None = 20.0,
        *,
        stage: str = "real",
        binarize_input: bool = True,
        pretrained: bool = False,
        generator: Generator | None = None,
    ):
        check(source, omega, stage)
        nn.Linear.__init__(
            self, source.in_features, source.out_features, source.bias is not None, device="meta"
        )
        self._become(source, omega, stage, binarize_input, pretrained, generator)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, ..., in) -> (B, ..., out)."""
        return self.product(x, self.effective_weight())


BinaryLayer = BiPerConv2d | BiPerLinear
