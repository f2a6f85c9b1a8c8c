"""One layer: a convolution of PyG's in two halves, of which the first is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....errors import MissingExtraError, unknown_name

CONVOLUTIONS = ("gcn", "sage", "gat")


def normalize(h: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one."""
    return h / (h.norm(dim=1, keepdim=True) + 1e-8)


def convolution(kind: str, in_channels: int, out_channels: int, heads: int = 4) -> Any:
    """A convolution of `torch_geometric.nn`.

    Args:
        kind: "gcn" (self loops, symmetric norm), "sage" (mean of the neighbours) or "gat".
        in_channels, out_channels: numbers of a node before and after.
        heads: of "gat", whose outputs are concatenated.

    Raises:
        ValueError: an unknown kind, or outputs that the heads cannot share equally.
        MissingExtraError: `torch_geometric` is not installed.
    """
    if kind not in CONVOLUTIONS:
        raise unknown_name("convolution", kind, CONVOLUTIONS)
    try:
        from torch_geometric.nn import GATConv, GCNConv, SAGEConv
    except ImportError:
        raise MissingExtraError("torch_geometric", "graphs") from None
    if kind == "gcn":
        return GCNConv(in_channels, out_channels)
    if kind == "sage":
        return SAGEConv(in_channels, out_channels)
    if out_channels % heads:
        raise ValueError(f"{out_channels} channels cannot be shared equally by {heads} heads.")
    return GATConv(in_channels, out_channels // heads, heads)


class GraphLayer(nn.Module):
    """ReLU(conv(x, edges)).

    The neighbours' sum of GCN and of SAGE has no weights: (Â x) W = Â (x W). It is taken first, by `gather`,
    once for inputs that stay the same; `forward` does the rest. GAT weighs neighbours by its parameters, so
    there `gather` leaves everything to `forward`.

    Args:
        kind, in_channels, out_channels, heads: as for `convolution`.
    """

    def __init__(self, kind: str, in_channels: int, out_channels: int, heads: int = 4):
        super().__init__()
        self.kind, self.conv = kind, convolution(kind, in_channels, out_channels, heads)

    @torch.no_grad()
    def gather(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, ...]:
        """What of a layer's inputs its weights meet; it has no gradient.

        Args:
            x: (N, in_channels).
            edge_index: (2, E) int64.
        """
        if self.kind == "gcn":
            from torch_geometric.nn.conv.gcn_conv import gcn_norm

            edge_index, weight = gcn_norm(edge_index, None, len(x), dtype=x.dtype)
            return (self.conv.propagate(edge_index, x=x, edge_weight=weight),)
        if self.kind == "sage":
            return self.conv.propagate(edge_index, x=(x, x), size=None), x.detach()
        return x.detach(), edge_index

    def forward(self, *gathered: Tensor) -> Tensor:
        """What `gather` returned -> (N, out_channels), not negative."""
        if self.kind == "gcn":
            return torch.relu(self.conv.lin(gathered[0]) + self.conv.bias)
        if self.kind == "sage":
            neighbours, own = gathered
            return torch.relu(self.conv.lin_l(neighbours) + self.conv.lin_r(own))
        return torch.relu(self.conv(*gathered))
