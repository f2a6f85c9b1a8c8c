"""The same layers trained end to end, which is what forward learning is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ....data.dataset import Rows
from ....training.arguments import TrainingArguments
from ....training.trainer import Step, Task
from .labels import check_graph, training_nodes
from .layers import convolution, normalize
from .tasks import train

if TYPE_CHECKING:
    from torch_geometric.data import Data


class Backprop(ModelMixin, ConfigMixin):
    """Convolutions with ReLU between them.

    Args:
        in_channels: features of a node.
        outputs: of the last convolution: classes, or what links are scored by.
        hidden_channels: of the others.
        num_layers: number of convolutions.
        conv: "gcn", "sage" or "gat" (one head in the last).
        unit_rows: whether features are brought to length 1 first, as for forward learning.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 64,
        outputs: int = 10,
        hidden_channels: int = 128,
        num_layers: int = 2,
        conv: str = "gcn",
        unit_rows: bool = True,
    ):
        super().__init__()
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), outputs]
        self.convs = nn.ModuleList(
            convolution(conv, widths[k], widths[k + 1], heads=4 if k + 1 < num_layers else 1)
            for k in range(num_layers)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(N, in_channels) -> (N, outputs)."""
        h = normalize(x) if self.config.unit_rows else x
        for k, conv in enumerate(self.convs):
            h = conv(h if k == 0 else h.relu(), edge_index)
        return h


class BackpropTask(Task):
    """Cross-entropy of the last layer: of nodes' classes, or of links by s_ij where the graph has edges to
    score.
    """

    def __init__(self, model: Backprop, data: Data):
        check_graph(data, model.config.in_channels)
        self.modules = {"model": model}
        self.data = data
        if getattr(data, "edge_label_index", None) is None:
            nodes = training_nodes(data, model.config.outputs)
            self.rows = Rows(node=nodes, label=data.y[nodes])
        else:
            self.rows = Rows(edge=data.edge_label_index.t().contiguous(), label=data.edge_label.float())

    def prepare(self, device: torch.device) -> None:
        self.data = self.data.to(device)

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        z = self.modules["model"](self.data.x, self.data.edge_index)
        if "node" in batch:
            return {"loss": F.cross_entropy(z[batch["node"]], batch["label"])}
        s = (z[batch["edge"][:, 0]] * z[batch["edge"][:, 1]]).sum(1)
        return {"loss": F.binary_cross_entropy_with_logits(s, batch["label"])}


def fit_backprop(model: Backprop, data: Data, training: TrainingArguments) -> Backprop:
    """Trains it on a graph as `fit` does, in place; returned in eval mode."""
    task = BackpropTask(model, data)
    train(task, task.rows, training)
    return model.eval()
