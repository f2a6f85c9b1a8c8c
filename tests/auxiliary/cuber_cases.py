"""Small sequences of tasks that CUBER is tested with."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dmkit.data import Rows
from dmkit.training.arguments import TrainingArguments
from dmkit.training.trainer import Task


def arguments(folder, **changes) -> TrainingArguments:
    settings = {
        "train_batch_size": 20,
        "num_epochs": 2,
        "learning_rate": 0.05,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "max_grad_norm": 0.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
        **changes,
    }
    return TrainingArguments(output_dir=str(folder), **settings)


class Regression(Task):
    """Half the mean square of an error."""

    def __init__(self, model: nn.Module):
        self.modules = {"model": model}

    def training_step(self, batch, step):
        return {"loss": 0.5 * F.mse_loss(self.modules["model"](batch["inputs"]), batch["targets"])}

    def save(self, folder, modules):
        pass


class Convolving(nn.Module):
    """A layer of every kind: a convolution with padding and stride, norms, one head a task."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.GroupNorm(2, 6)
        self.lin = nn.Linear(24, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.task = 0

    def forward(self, x):
        return self.heads[self.task](F.relu(self.lin(F.relu(self.norm(self.conv(x))).flatten(1))))


def pictures(seed: int, count: int = 40) -> Rows:
    """Images (2, 4, 4) that lie in a few directions, and targets of no meaning."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.randn(3, 2, 4, 4, generator=generator)
    mixed = torch.einsum("nk,kchw->nchw", torch.randn(count, 3, generator=generator), shapes)
    return Rows(inputs=mixed, targets=torch.randn(count, 3, generator=generator))


def two_linear_tasks(seed: int, sign: int) -> tuple[Rows, Rows]:
    """y = ± X w with inputs in coordinates 0 to 9, then in 1 to 10, of 20; all 200 examples in one row."""
    rng = np.random.default_rng(seed)
    weights, first, second = rng.normal(size=20), np.zeros((200, 20)), np.zeros((200, 20))
    first[:, :10] = rng.normal(size=(200, 10))
    second[:, 1:11] = rng.normal(size=(200, 10))
    targets = first @ weights, sign * second @ weights
    return tuple(
        Rows(inputs=torch.from_numpy(x)[None], targets=torch.from_numpy(y)[None, :, None])
        for x, y in zip((first, second), targets, strict=True)
    )


def loss_of(model: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return float(0.5 * F.mse_loss(model(rows.columns["inputs"]), rows.columns["targets"]))
