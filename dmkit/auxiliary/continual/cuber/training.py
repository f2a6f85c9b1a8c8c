"""Trains a network through a sequence of tasks: fine-tuning, GPM, TRGP or CUBER, with all else alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ....auxiliary import stage
from ....errors import unknown_name
from ....metrics.classification import accuracy, average_accuracy, backward_transfer
from ....training.arguments import TrainingArguments, hint
from ....training.classifying import ClassificationTask
from ....training.networks import MLP
from ....training.trainer import Task, Trainer
from .._streams import TaskData, permuted_digits
from .gpm import GPM
from .related import CUBER, TRGP
from .rule import CHECKS, RegimeProjection

LEARNERS = ("finetune", "gpm", "trgp", "cuber")
STREAMS = ("permuted", "alternating")


@dataclass
class Arguments:
    """CUBER on a stream of digits."""

    learner: str = field(default="cuber", metadata=hint("finetune, gpm, trgp or cuber."))
    stream: str = field(
        default="permuted",
        metadata=hint("permuted: another order of pixels in each task; alternating: two orders in turn."),
    )
    tasks: int = field(default=5, metadata=hint("Tasks in the stream."))
    examples: int = field(default=300, metadata=hint("Digits to train a task on."))
    hidden: list[int] = field(default_factory=lambda: [100, 100], metadata=hint("Hidden layers."))
    energy: float = field(default=0.97, metadata=hint("Share of the inputs' energy in a task's subspace."))
    energy_step: float = field(default=0.0, metadata=hint("Added to it with each task."))
    eps1: float = field(default=0.5, metadata=hint("Sufficient projection, of trgp and cuber."))
    eps2: float = field(default=0.2, metadata=hint("Positive correlation, of cuber; 0 in the paper."))
    reg_weight: float = field(default=1.0, metadata=hint("Weight of cuber's penalty."))
    max_related: int = field(default=2, metadata=hint("Old tasks related to a new one, in each layer."))
    scale_learning_rate: float = field(default=0.005, metadata=hint("Of the scale matrices."))
    check: str = field(default="step", metadata=hint("When cuber tests: step, epoch or ema."))

    def __post_init__(self) -> None:
        for what, name, known in (
            ("--learner", self.learner, LEARNERS),
            ("--stream", self.stream, STREAMS),
            ("--check", self.check, CHECKS),
        ):
            if name not in known:
                raise unknown_name(what, name, known)


def learn(
    task: Task, dataset: Dataset, training: TrainingArguments, learner: GPM | None = None, examples: int = 512
) -> None:
    """Trains one task of a sequence.

    Args:
        task: its losses; it trains the learner's model.
        dataset: its data.
        training: how. What a checkpoint of a finished task holds is taken from there on resumption.
        learner: what guards the tasks before; None for plain fine-tuning.
        examples: of the data, for its gradients and the span of its inputs.
    """
    if learner is None:
        Trainer(task, dataset, training).train()
        return
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(training.seed))[:examples]  # type: ignore[arg-type]
    subset = torch.utils.data.Subset(dataset, chosen.tolist())
    batches = list(DataLoader(subset, batch_size=128))
    guarded, rule = learner.begin_task(task, batches)
    trainer = Trainer(guarded, dataset, training, rule=rule)
    if isinstance(rule, RegimeProjection):
        rule.steps_per_epoch = trainer.steps_per_epoch
    trainer.train()
    for name, average in trainer.ema.items():  # what is kept is what is saved
        average.copy_to(trainer.unwrapped()[name].parameters())
    learner.end_task(batches)


def build_learner(arguments: Arguments, model: nn.Module) -> GPM | None:
    """The learner that the arguments name; None for fine-tuning."""
    common: dict[str, Any] = {"energy": arguments.energy, "energy_step": arguments.energy_step}
    related = {
        **common,
        "eps1": arguments.eps1,
        "max_related": arguments.max_related,
        "scale_learning_rate": arguments.scale_learning_rate,
    }
    if arguments.learner == "gpm":
        return GPM(model, **common)
    if arguments.learner == "trgp":
        return TRGP(model, **related)
    if arguments.learner == "cuber":
        return CUBER(
            model,
            **related,
            eps2=arguments.eps2,
            reg_weight=arguments.reg_weight,
            check=arguments.check,
        )
    return None


def accuracies(model: nn.Module, learner: GPM | None, stream: list[TaskData], seen: int) -> list[float]:
    """Test accuracies of all tasks, in per cent, those already learned with their own scale matrices."""
    row = []
    for t, data in enumerate(stream):
        if learner is not None and t < seen:
            with learner.use_task(t) as network:
                found = accuracy(network, data.test_inputs, data.test_labels)
        else:
            found = accuracy(model, data.test_inputs, data.test_labels)
        row.append(100 * found)
    return row


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains through the stream; returns the accuracies after each task (per cent), ACC and BWT."""
    stream = permuted_digits(
        arguments.tasks, arguments.examples, training.seed, alternating=arguments.stream == "alternating"
    )
    torch.manual_seed(training.seed)
    model = MLP([64, *arguments.hidden, 10], bias=False)
    learner = build_learner(arguments, model)
    rows = []
    for t, data in enumerate(stream):
        task = ClassificationTask(model)
        learn(task, data.rows(), stage(training, f"task-{t}"), learner, examples=arguments.examples)
        rows.append(accuracies(model, learner, stream, t + 1))
    if learner is not None and PartialState().is_main_process:
        learner.save(Path(training.output_dir) / "continual")
    return {
        "accuracies": [[round(value, 2) for value in row] for row in rows],
        "ACC": round(average_accuracy(rows), 2),
        "BWT": round(backward_transfer(rows), 2),
        "kept_numbers": 0 if learner is None else learner.memory_numel(),
        "directions": {} if learner is None else {n: pool.shape[1] for n, pool in learner.pools.items()},
    }
