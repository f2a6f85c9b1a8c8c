"""A small training of O-DICE; run as a script it is one process of two."""

import sys
from pathlib import Path

import torch

from dmkit.auxiliary.rl.odice import GaussianPolicy, ODICETask, Transitions, ValueNetwork
from dmkit.auxiliary.rl.odice.data import as_it_is
from dmkit.training.arguments import TrainingArguments
from dmkit.training.trainer import Trainer


def transitions(count: int = 120, dim: int = 3) -> Transitions:
    """Steps of a drifting point, some of which end."""
    generator = torch.Generator().manual_seed(0)
    states, actions = torch.randn(count, dim, generator=generator), torch.rand(count, 2, generator=generator)
    after = 0.9 * states + 0.3 * torch.randn(count, dim, generator=generator)
    rewards = 2 * torch.randn(count, generator=generator)
    ends = torch.rand(count, generator=generator) < 0.2
    return Transitions(states, 2 * actions - 1, rewards, after, ends, returns=torch.tensor([1.0, 3.0]))


def settings(folder: Path, **changes) -> TrainingArguments:
    common = {
        "output_dir": str(folder),
        "train_batch_size": 20,
        "learning_rate": 0.01,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "max_grad_norm": 0.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**common, **changes})


def task(members: int = 2, **changes) -> ODICETask:
    torch.manual_seed(0)
    value = ValueNetwork(3, hidden=(16, 16), members=members)
    return ODICETask(value, GaussianPolicy(3, 2, hidden=(16,)), tau=0.1, **changes)


def train(folder: Path, made: ODICETask, data: Transitions | None = None, **changes) -> Trainer:
    run = Trainer(
        made, data or transitions(), settings(folder, **changes), rule=made.rule(), collate_fn=as_it_is
    )
    run.train()
    return run


if __name__ == "__main__":
    train(Path(sys.argv[1]), task(), max_train_steps=4, train_batch_size=int(sys.argv[2]))
