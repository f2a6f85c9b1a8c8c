"""The chain of layers' outputs, always normalised and without a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .layers import normalize

if TYPE_CHECKING:
    from .model import ForwardGNN


class States(ModelMixin, ConfigMixin):
    """Outputs of all layers at the last step of a training with top-down signals; part of its checkpoints.

    Args:
        nodes: rows of each.
        widths: columns of each, as JSON.
    """

    @register_to_config
    def __init__(self, nodes: int = 1, widths: Sequence[int] = ()):
        super().__init__()
        for k, width in enumerate(widths):
            self.register_buffer(f"state_{k}", torch.zeros(nodes, width))

    def values(self) -> list[Tensor]:
        return list(self.buffers())

    def put(self, k: int, value: Tensor) -> None:
        setattr(self, f"state_{k}", value)


@torch.no_grad()
def bottom_up(model: ForwardGNN, x: Tensor, edge_index: Tensor, depth: int | None = None) -> list[Tensor]:
    """h_1 to h_L, each from the one before it, normalised; what a layer would read from above it is 0.

    Args:
        model: whose first `depth` layers are run, all by default.
        x: (N, F) or, with class nodes, (N + K, F).
        edge_index: (2, E).
    """
    below, outputs = normalize(x), []
    for k, layer in enumerate(model.layers[:depth]):
        missing = layer.conv.in_channels - below.shape[1]
        outputs.append(model(layer.gather(F.pad(below, (0, missing)), edge_index), k))
        below = normalize(outputs[-1])
    return outputs


def label_state(model: ForwardGNN, members: Tensor, labels: Tensor, nodes: int) -> Tensor:
    """What lies above the last layer in (6), (N + K, K): known labels of nodes and class nodes, else 1/K."""
    classes = model.config.classes
    state = torch.full((nodes + classes, classes), 1 / classes, device=labels.device)
    state[members] = F.one_hot(labels, classes).float()
    state[nodes:] = torch.eye(classes, device=labels.device)
    return normalize(state)


def inputs(states: Sequence[Tensor], k: int, top_down: str | None) -> Tensor:
    """What layer k reads: the state below it, and with (6) the one above it where there is one."""
    return torch.cat([states[k], *states[k + 2 : k + 3]], dim=1) if top_down == "input" else states[k]


def combined(z: Tensor, states: Sequence[Tensor], k: int) -> Tensor:
    """(5): the mean of layer k's output and the states of the layers above the next one."""
    return torch.stack([z, *states[k + 2 :]]).mean(0)


def alternating(layers: int) -> list[int]:
    """The order of layers in (6): first every second one, then the others, each reading what is newest."""
    return [*range(0, layers, 2), *range(1, layers, 2)]
