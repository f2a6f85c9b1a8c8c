"""Two small networks that methods about training in general are shown and measured on. Any `nn.Module` serves
those methods; these are in Diffusers' form, so that the trainer can checkpoint them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class MLP(ModelMixin, ConfigMixin):
    """Linear layers with ReLU between them.

    Args:
        widths: of the input, the hidden layers and the output; at least two.
        bias: whether the layers have one.
    """

    @register_to_config
    def __init__(self, widths: Sequence[int] = (64, 100, 100, 10), bias: bool = True):
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths: at least an input and an output, not {list(widths)}.")
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) with widths[0] numbers an item -> (B, widths[-1])."""
        return self.layers(inputs.flatten(1))


class ConvNet(ModelMixin, ConfigMixin):
    """3x3 convolutions with ReLU, halved after each block but the last, pooled to 2x2, and a linear head.

    Args:
        in_channels: of the images.
        blocks: output channels of the convolutions, block by block.
        classes: outputs of the head.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        blocks: Sequence[Sequence[int]] = ((24, 24), (48, 48)),
        classes: int = 10,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for k, block in enumerate(blocks):
            if k:
                layers.append(nn.MaxPool2d(2))
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(channels * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        return self.head(self.features(images))
