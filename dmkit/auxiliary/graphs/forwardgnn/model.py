"""The network: layers that never meet in one computation, and the features of its class nodes."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .labels import check_choice
from .layers import GraphLayer


class ForwardGNN(ModelMixin, ConfigMixin):
    """A graph network for forward learning; saved with the fixed features of its class nodes.

    Args:
        in_channels: F, features of a node.
        classes: K; not looked at for links.
        hidden_channels: d, of every layer.
        num_layers: L.
        conv: "gcn", "sage" or "gat".
        method: "sf", "ff-la" or "ff-vn" to classify nodes, "link-ce" or "link-ff" to predict links.
        top_down: None, "loss" (5) or "input" (6); both for "sf", the latter for "link-ce".
        temperature: τ of (1).
        theta: θ of (3).
        heads: of "gat".

    Raises:
        ValueError: unknown names, signals that the method does not have, fewer than two classes or one layer,
            τ or θ that is not positive, or channels that the heads cannot share.
        MissingExtraError: `torch_geometric` is not installed.
    """

    virtual: Tensor

    @register_to_config
    def __init__(
        self,
        in_channels: int = 64,
        classes: int = 10,
        hidden_channels: int = 128,
        num_layers: int = 2,
        conv: str = "gcn",
        method: str = "sf",
        top_down: str | None = None,
        temperature: float = 1.0,
        theta: float = 2.0,
        heads: int = 4,
    ):
        super().__init__()
        check_choice(method, top_down)
        for name, value in {"temperature": temperature, "theta": theta}.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive.")
        if num_layers < 1 or (classes < 2 and not method.startswith("link")):
            raise ValueError(f"A layer and two classes are the least, not {num_layers} and {classes}.")
        # Drawn before the layers, so that the first layers of a deep network are those of a shallow one.
        self.register_buffer("virtual", torch.randn(classes, in_channels))
        widths = [in_channels + classes * (method == "ff-la"), *[hidden_channels] * num_layers]
        if top_down == "input" and method == "sf":
            widths.append(classes)  # the state of labels, above the last layer
        above = widths[2:] if top_down == "input" else []
        above += [0] * (num_layers - len(above))
        self.layers = nn.ModuleList(
            GraphLayer(conv, widths[k] + above[k], hidden_channels, heads) for k in range(num_layers)
        )

    def forward(self, gathered: tuple[Tensor, ...], layer: int) -> Tensor:
        """One layer's output from what its `gather` returned."""
        return self.layers[layer](*gathered)
