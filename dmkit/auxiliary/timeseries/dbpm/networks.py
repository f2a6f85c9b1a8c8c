"""Small networks for series; any module of these forms serves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class Encoder(ModelMixin, ConfigMixin):
    """Convolutions over time, the first of stride 1, the others of 2, each normalised over a sample (a batch
    may be shared by processes) and with ReLU; their mean over time.

    Args:
        channels: C of the series.
        widths: of each layer; the last is the number of features, D.
        kernel: odd.
    """

    @register_to_config
    def __init__(self, channels: int = 1, widths: Sequence[int] = (16, 16, 32), kernel: int = 7):
        super().__init__()
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise([channels, *widths])):
            convolution = nn.Conv1d(a, b, kernel, stride=min(k + 1, 2), padding=kernel // 2)
            layers += [convolution, nn.GroupNorm(1, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, pooled: bool = True) -> Tensor:
        """(B, C, T) -> (B, D), or (B, D, T') before the mean over time."""
        maps = self.layers(x)
        return maps.mean(2) if pooled else maps


class Projector(ModelMixin, ConfigMixin):
    """Two linear layers with ReLU between, the head of SimCLR."""

    @register_to_config
    def __init__(self, features: int = 32, hidden: int = 64, outputs: int = 32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, z: Tensor) -> Tensor:
        """(B, features) -> (B, outputs)."""
        return self.layers(z)


class Forecaster(ModelMixin, ConfigMixin):
    """The head of TS-TCC: a context of the features up to a time, what it foretells of the next ones, and its
    projection.

    Args:
        features: D of the encoder.
        context: numbers of the context.
        horizon: K, time steps foretold.
        outputs: of the projection.
    """

    @register_to_config
    def __init__(self, features: int = 32, context: int = 32, horizon: int = 4, outputs: int = 32):
        super().__init__()
        self.memory = nn.GRU(features, context, batch_first=True)
        self.future = nn.Linear(context, horizon * features)
        self.projection = nn.Sequential(nn.Linear(context, context), nn.ReLU(), nn.Linear(context, outputs))

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, t) -> foretold (B, D, K) and projected (B, outputs)."""
        _, last = self.memory(past.transpose(1, 2))
        context = last[0]
        foretold = self.future(context).view(len(context), -1, self.config.horizon)
        return foretold, self.projection(context)


def gathered(z: Tensor) -> Tensor:
    """Rows of all processes, in their order, with gradients to each; of one process, itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return z
    return _Gather.apply(z)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        parts = [
            torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(parts, z.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
