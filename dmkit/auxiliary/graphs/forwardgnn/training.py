"""Digits or Debian's packages as a graph, by forward learning and by backpropagation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....data.graphs import digit_graph, split_nodes
from ....data.packages import debian_graph
from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ... import stage
from .backprop import Backprop, fit_backprop
from .labels import check_choice
from .model import ForwardGNN
from .predicting import link_scores, scores
from .tasks import fit

if TYPE_CHECKING:
    from torch_geometric.data import Data

GRAPHS = ("digits", "debian", "debian-small")


@dataclass
class Arguments:
    """Which graph, which network, which method."""

    graph: str = field(default="digits", metadata=hint("digits, debian or debian-small."))
    forward_method: str = field(default="sf", metadata=hint("sf, ff-la, ff-vn, link-ce or link-ff."))
    top_down: str | None = field(default=None, metadata=hint("loss or input: signals from upper layers."))
    conv: str = field(default="gcn", metadata=hint("gcn, sage or gat."))
    hidden_channels: int = field(default=128, metadata=hint("Width of the layers."))
    layers: int = field(default=2, metadata=hint("Number of layers."))
    train_share: float = field(default=0.64, metadata=hint("Share of the labelled nodes to train on."))
    backprop_steps: int = field(
        default=0, metadata=hint("Steps of a network of the same depth by backpropagation; 0: none.")
    )

    def __post_init__(self) -> None:
        check_choice(self.forward_method, self.top_down)
        if self.graph not in GRAPHS:
            raise unknown_name("--graph", self.graph, GRAPHS)
        for name, least in {"hidden_channels": 1, "layers": 1, "backprop_steps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least {least}.")


def load(name: str) -> Data:
    """One of `GRAPHS`, without a split."""
    return digit_graph() if name == "digits" else debian_graph(small=name == "debian-small")


def split_links(data: Data, seed: int) -> tuple[Data, Data, Data]:
    """Training, validation and test graphs of 64, 16 and 20 % of the links, an absent one for each."""
    from torch_geometric.seed import seed_everything
    from torch_geometric.transforms import RandomLinkSplit

    seed_everything(seed)
    return RandomLinkSplit(num_val=0.16, num_test=0.2, is_undirected=True)(data)


def accuracy(found: Tensor, data: Data, part: str = "test") -> float:
    """The share of a split's nodes whose largest score (N, K) is that of their class."""
    mask = data[f"{part}_mask"]
    return float((found.argmax(1)[mask] == data.y[mask]).double().mean())


def area(found: Tensor, data: Data) -> float:
    """The area under the ROC curve of links' scores: how often a true link is above an absent one."""
    true, absent = found[data.edge_label == 1].double(), found[data.edge_label == 0].double().sort().values
    below = torch.searchsorted(absent, true) + torch.searchsorted(absent, true, right=True)
    return float(below.double().mean() / 2 / len(absent))


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains and measures; the network goes into `model`.

    Returns:
        "test" by depth 1 to L (with top-down signals L only), and "backprop" if wanted: accuracies of nodes,
        or areas under the ROC curve of links.
    """
    data, links = load(arguments.graph), arguments.forward_method.startswith("link")
    parts = (
        split_links(data, training.seed)
        if links
        else [split_nodes(data, training.seed, arguments.train_share)]
    )
    fitted, measured = parts[0], parts[-1]
    torch.manual_seed(training.seed)
    classes = int(data.y.max()) + 1
    width: dict[str, Any] = {
        "hidden_channels": arguments.hidden_channels,
        "num_layers": arguments.layers,
        "conv": arguments.conv,
    }
    model = ForwardGNN(
        data.num_features, classes, method=arguments.forward_method, top_down=arguments.top_down, **width
    )
    model = fit(model, fitted, stage(training, "forward"))
    model.save_pretrained(Path(training.output_dir) / "model")
    depths = [arguments.layers] if arguments.top_down else range(1, arguments.layers + 1)
    if links:
        test = {str(k): area(link_scores(model, measured, k), measured) for k in depths}
    else:
        test = {str(k): accuracy(scores(model, measured, k), measured) for k in depths}
    figures: dict[str, Any] = {"test": test}
    if arguments.backprop_steps:
        torch.manual_seed(training.seed)
        outputs = arguments.hidden_channels if links else classes
        other = Backprop(data.num_features, outputs, **width)
        steps = {"max_train_steps": arguments.backprop_steps}
        other = fit_backprop(other, fitted, stage(training, "backprop", **steps))
        with torch.no_grad():
            z = other(measured.x, measured.edge_index)
        if links:
            i, j = measured.edge_label_index
            figures["backprop"] = area((z[i] * z[j]).sum(1), measured)
        else:
            figures["backprop"] = accuracy(z, measured)
    return figures
