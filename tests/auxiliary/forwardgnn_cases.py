"""A small graph, and a training of few steps on it; run by torchrun, each process trains one: FOLDER."""

import sys
from pathlib import Path

import torch
from torch_geometric.data import Data

from dmkit.auxiliary.graphs.forwardgnn import ForwardGNN, fit
from dmkit.data.graphs import undirected
from dmkit.training.arguments import TrainingArguments

CLASSES = 3


def graph(seed: int = 0, nodes: int = 24) -> Data:
    """Nodes of three classes in turn, 16 of them to train on, the last one without a label."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % CLASSES
    x = torch.randn(nodes, 5, generator=generator) + torch.nn.functional.one_hot(y, 5)
    pairs = torch.randint(nodes, (2, 60), generator=generator)
    order = torch.cat([torch.arange(6), 6 + torch.randperm(nodes - 6, generator=generator)])
    masks = {}
    for name, part in (("train", order[:16]), ("val", order[16:20]), ("test", order[20:])):
        masks[f"{name}_mask"] = torch.zeros(nodes, dtype=torch.bool)
        masks[f"{name}_mask"][part] = True
    y = torch.where(masks["test_mask"] & (torch.arange(nodes) == order[-1]), -1, y)
    return Data(x=x, edge_index=undirected(pairs, nodes), y=y, **masks)


def links(seed: int = 0) -> Data:
    """The same graph with its edges, and as many others, to score."""
    data = graph(seed)
    generator = torch.Generator().manual_seed(seed)
    true = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    other = torch.randint(24, (2, true.shape[1]), generator=generator)
    return Data(
        x=data.x,
        edge_index=data.edge_index,
        edge_label_index=torch.cat([true, other], dim=1),
        edge_label=torch.cat([torch.ones(true.shape[1]), torch.zeros(true.shape[1])]),
    )


def network(seed: int = 0, **changes) -> ForwardGNN:
    torch.manual_seed(seed)
    return ForwardGNN(5, CLASSES, **{"hidden_channels": 8, "num_layers": 2, **changes})


def training(folder: Path, **changes) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "train_batch_size": 1000,
        "max_train_steps": 5,
        "learning_rate": 0.02,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


if __name__ == "__main__":
    model = fit(network(), graph(), training(Path(sys.argv[1])))
    model.save_pretrained(Path(sys.argv[1]) / f"rank-{torch.distributed.get_rank()}")
