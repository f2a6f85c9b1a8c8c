"""A residual network of binary convolutions, as the paper has it for small images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ....errors import FileFormatError
from .converting import binary_layers
from .layers import BiPerConv2d


class _Block(nn.Module):
    """hardtanh(norm(conv(x)) + x), x pooled and padded with channels of zeros where the shape changes."""

    def __init__(self, before: int, after: int, omega: float | None, stage: str, binary: bool):
        super().__init__()
        self.stride, self.more = (1 if before == after else 2), after - before
        plain = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        nn.init.kaiming_normal_(plain.weight)
        self.conv = BiPerConv2d(plain, omega, stage=stage) if binary else plain
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        new = self.norm(self.conv(x))
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return F.hardtanh(new + F.pad(x, (0, 0, 0, 0, 0, self.more)))


class BinaryResNet(ModelMixin, ConfigMixin):
    """A stem and a head of real weights, and binary 3x3 convolutions with a skip around each.

    Args:
        in_channels: of the images.
        widths: channels, ascending; the image is halved at each but the first. (16, 32, 64) with depth 6 is
            the paper's ResNet-20.
        depth: convolutions of each width.
        classes: outputs.
        omega: ω of all binary layers; None for the sign with a straight-through gradient.
        stage: "real" or "binary".
        binary: False for the same network with plain convolutions.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (16,),
        depth: int = 3,
        classes: int = 10,
        omega: float | None = 20.0,
        stage: str = "real",
        binary: bool = True,
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        blocks, channels = [], widths[0]
        for width in widths:
            for _ in range(depth):
                blocks.append(_Block(channels, width, omega, stage, binary))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head_norm = nn.BatchNorm1d(channels * 4)
        self.head = nn.Linear(channels * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        x = self.blocks(self.stem_norm(self.stem(images)))
        return self.head(self.head_norm(F.adaptive_avg_pool2d(x, 2).flatten(1)))

    def save_pretrained(self, folder: str | os.PathLike, **settings: Any) -> None:
        """As every model of Diffusers, with the stage that the layers are in now."""
        if self.config.binary:
            self.register_to_config(stage=next(iter(binary_layers(self).values())).stage)
        super().save_pretrained(folder, **settings)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **settings: Any) -> BinaryResNet:
        """As every model of Diffusers.

        Raises:
            FileFormatError: the weights were trained with another `omega` than what is asked for.
        """
        model = super().from_pretrained(folder, **settings)
        if model.config.binary:
            for name, layer in binary_layers(model).items():
                try:
                    layer.check_omega()
                except ValueError as error:
                    raise FileFormatError(f"{folder}: {name}: {error}") from error
        return model
