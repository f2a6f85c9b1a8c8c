"""IBCL, RWS and BT² trained by however many processes there are, on the same whole batches.

    torchrun --nproc_per_node 2 training_in_pairs.py FOLDER        two processes
    trained(FOLDER)                                                this one

Each process writes the weights that it ends with.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn

from dmkit.auxiliary.compression.rws import training as rws
from dmkit.auxiliary.continual.ibcl import IBCL
from dmkit.auxiliary.continual.ibcl.gaussians import Gaussian
from dmkit.auxiliary.continual.ibcl.variational import VariationalTask
from dmkit.auxiliary.retrieval.bt2 import training as bt2
from dmkit.data import Rows
from dmkit.data.corruptions import Corruption
from dmkit.training.arguments import TrainingArguments
from dmkit.training.networks import ConvNet
from dmkit.training.trainer import Trainer


def arguments(folder: Path, batch: int, **changes) -> TrainingArguments:
    """`batch` is that of all processes together."""
    values = {
        "output_dir": str(folder),
        "train_batch_size": batch // PartialState().num_processes,
        "max_train_steps": 5,
        "learning_rate": 0.05,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


def inference(folder: Path) -> dict[str, Tensor]:
    """Posteriors; without spread and prior, where chance has no part; and the outputs of one forward pass."""
    generator = torch.Generator().manual_seed(0)
    rows = Rows(inputs=torch.randn(24, 3, generator=generator), labels=torch.arange(24) % 2)
    base = IBCL(nn.Linear(3, 2, bias=False), [0.3, 0.6], discard_threshold=0.05)
    for t in range(2):
        base.fit_task(rows, arguments(folder / f"ibcl-{t}", 8, optimizer="adamw"))
    found = {f"ibcl.{t}.{j}": base.posterior(t, j).loc for t in range(2) for j in range(2)}
    found |= {f"ibcl.{t}.{j}.scale": base.posterior(t, j).scale for t in range(2) for j in range(2)}
    sure = Gaussian(torch.zeros(6), torch.full((6,), 1e-5))
    outputs: list[Tensor] = []

    def likelihood(logits: Tensor, labels: Tensor) -> Tensor:
        outputs.append(logits.detach().clone())
        return nn.functional.cross_entropy(logits, labels)

    task = VariationalTask(nn.Linear(3, 2, bias=False), sure, 24, kl_weight=0.0)
    Trainer(task, rows, arguments(folder / "sure", 8)).train()
    same = Rows(inputs=torch.ones(24, 3), labels=torch.zeros(24, dtype=torch.long))
    wide = VariationalTask(
        nn.Linear(3, 2, bias=False), Gaussian(torch.zeros(6), torch.ones(6)), 24, likelihood=likelihood
    )
    Trainer(wide, same, arguments(folder / "wide", 8, max_train_steps=1)).train()
    return {**found, "sure": task.posterior().loc, "draws": outputs[0]}


def robust(folder: Path) -> dict[str, Tensor]:
    """Fine-tunings under a rule without chance, and under one with, each with the pull to the start."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(32, 1, 8, 8, generator=generator), torch.arange(32) % 10
    torch.manual_seed(0)
    start, found = ConvNet(), {}
    for name in ("contrast", "gaussian_noise"):
        model = rws.fit(
            start, images, labels, arguments(folder / name, 8), rule=Corruption(name), proximal=0.1
        )
        found |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
    given = rws.Arguments(
        dataset="digits", resolution=8, images=64, test_images=20, layers="conv:2", levels=0,
        corruptions=["contrast"], standard_epochs=1, robust_epochs=1,
    )  # fmt: skip
    rws.run(given, arguments(folder / "rws", 8))
    return found


def compatible(folder: Path) -> dict[str, Tensor]:
    """All models of BT²'s experiment."""
    given = bt2.Arguments(extra_dims=[2], train_size=64, test_size=40)
    training = arguments(folder / "bt2", 16)
    experiment = bt2.Experiment(given, training)
    old, teacher = experiment.independent("old", 8, 4), experiment.independent("new", 8)
    models = {"bct": experiment.bct("bct", old, extra_dim=2)}
    models["bt2"] = experiment.bt2("bt2", old, teacher, experiment.first_head(2))
    return {
        f"{name}.{key}": value.clone() for name, m in models.items() for key, value in m.state_dict().items()
    }


def trained(folder: Path) -> None:
    found = {**inference(folder), **robust(folder), **compatible(folder)}
    state = PartialState()
    save_file(
        {key: value.clone() for key, value in found.items()},
        folder / f"{state.process_index}.safetensors",
    )
    state.wait_for_everyone()


if __name__ == "__main__":
    PartialState(cpu=True)
    trained(Path(sys.argv[1]))
