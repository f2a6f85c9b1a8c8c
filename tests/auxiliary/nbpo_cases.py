"""A small training of NBPO; run as a script it is one process of two."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from dmkit.auxiliary.recommendation.nbpo import (
    FlipModel,
    MatrixFactorization,
    NBPOLoss,
    UniformNegativeSampler,
)
from dmkit.auxiliary.recommendation.nbpo.generating import generate
from dmkit.auxiliary.recommendation.nbpo.task import Clicks, RecommendationTask, as_it_is
from dmkit.training.arguments import TrainingArguments
from dmkit.training.trainer import Trainer

GENERATED = {"data": "generated", "dim": 8, "flip_dim": 8}


def settings(folder: Path, **changes) -> TrainingArguments:
    common = {
        "output_dir": str(folder),
        "train_batch_size": 500,
        "learning_rate": 0.05,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "sgd_weight_decay": 0.3,
        "max_grad_norm": 0.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**common, **changes})


def train_steps(folder: Path, steps: int, *, flip_decay: float = 0.7, **changes) -> SimpleNamespace:
    """Trains; gives the task, its weights before, and the last batch with its negatives."""
    changes["train_batch_size"] = changes.pop("batch_size", changes.get("train_batch_size", 50))
    parts, _ = generate(torch.Generator().manual_seed(0), users=20, items=30, likes=8)
    torch.manual_seed(0)
    scores, flip = MatrixFactorization(20, 30, dim=4), FlipModel(20, 30, dim=3)
    # A start at which flips are not next to impossible, so that every term has its weight.
    flip.user_factors.weight.data.mul_(0.2)
    sampler = UniformNegativeSampler(parts.train, 3)
    seen = SimpleNamespace()

    def recording(users, model, draws):
        seen.negatives = sampler(users, model, draws)
        return seen.negatives

    task = RecommendationTask(scores, NBPOLoss(), recording, parts.train, flip=flip, flip_decay=flip_decay)
    seen.task = task
    seen.before = {
        name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in task.modules.items()
    }
    step = task.training_step

    def watching(batch, here):
        seen.batch = batch
        return step(batch, here)

    task.training_step = watching
    Trainer(
        task,
        Clicks(parts.train),
        settings(folder, max_train_steps=steps, **changes),
        collate_fn=as_it_is,
    ).train()
    return seen


if __name__ == "__main__":
    train_steps(Path(sys.argv[1]), 4, batch_size=int(sys.argv[2]))
