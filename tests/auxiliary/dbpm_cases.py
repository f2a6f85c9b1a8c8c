"""A small training with DBPM; run by itself, one process of two."""

import sys
from pathlib import Path

import torch

from dmkit.auxiliary.timeseries.dbpm import (
    TSTCC,
    AugmentedPairs,
    BadPairMiner,
    ContaminatedPairs,
    Encoder,
    Forecaster,
    Jitter,
    Projector,
    Scaling,
    SimCLR,
    pretrain,
    sines,
)
from dmkit.training.arguments import TrainingArguments

COUNT = 26  # three batches of eight, and two pairs that wait


def training(folder: Path, **changes) -> TrainingArguments:
    flags = {
        "train_batch_size": 8,
        "num_epochs": 4,
        "learning_rate": 3e-3,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**flags, "output_dir": str(folder), "seed": 4, **changes})


def task(kind: type[SimCLR] = SimCLR, miner: bool | BadPairMiner = True) -> SimCLR:
    x, _ = sines(COUNT, seed=3, times=16)
    pairs = ContaminatedPairs(AugmentedPairs(x, Scaling(0.1), Jitter(0.3)), 0.2, 0.2, seed=1)
    if isinstance(miner, bool):
        miner = BadPairMiner(COUNT, 2, 1.0, 1.0) if miner else None
    torch.manual_seed(1)
    encoder = Encoder(widths=(4, 6), kernel=3)
    head = Projector(6, 8, 5) if kind is SimCLR else Forecaster(6, 7, 2, 5)
    return kind(encoder, head, pairs, miner, seed=4)


def state(trained: SimCLR) -> dict[str, torch.Tensor]:
    """All weights, and the memory."""
    return {
        f"{name}.{key}": value
        for name, module in trained.modules.items()
        for key, value in getattr(module, "module", module).state_dict().items()
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for kind in (SimCLR, TSTCC):
        trained = pretrain(task(kind), training(folder / kind.__name__, train_batch_size=4))
        rank = torch.distributed.get_rank()
        torch.save(state(trained), folder / f"{kind.__name__}-{rank}.pt")
