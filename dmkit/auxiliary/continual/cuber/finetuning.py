"""A finished model goes on with new data and keeps what it knows: the flags of a training script.

Its first task is behind it, so that only a few hundred examples of that are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ....training.checkpoint import save_into
from ....training.trainer import Task
from .gpm import GPM
from .measuring import module_name
from .related import TRGP
from .training import LEARNERS, Arguments, build_learner, learn

GUARDS = tuple(name for name in LEARNERS if name != "finetune")
MEMORY = "continual"


@dataclass
class ContinualArguments:
    """How fine-tuning keeps what the model knows; off by default."""

    continual: str | None = field(
        default=None,
        metadata=hint("Keep what the model knows: gpm, trgp or cuber; not given: no."),
    )
    old_dataset_name: str | None = field(
        default=None, metadata=hint("With --continual: data of the kind that the model was trained on.")
    )
    old_examples: int = field(
        default=512,
        metadata=hint("How many of the old data, and of the new, are looked at."),
    )
    continual_energy: float = field(
        default=0.97, metadata=hint("Share of a layer's old inputs that is protected.")
    )
    continual_eps1: float = field(default=0.5, metadata=hint("Sufficient projection, of trgp and cuber."))
    continual_eps2: float = field(default=0.0, metadata=hint("Positive correlation, of cuber."))
    continual_scale_learning_rate: float | None = field(
        default=None, metadata=hint("Of the scale matrices; by default a tenth of --learning_rate.")
    )

    def __post_init__(self) -> None:
        if self.continual is not None and self.continual not in GUARDS:
            raise unknown_name("--continual", self.continual, GUARDS)
        if self.continual is not None and self.old_dataset_name is None:
            raise ValueError(
                f"--continual {self.continual} has to see what the model knows: give --old_dataset_name."
            )
        if self.continual is None and self.old_dataset_name is not None:
            raise ValueError("--old_dataset_name is for --continual: give one of " + ", ".join(GUARDS) + ".")
        if self.old_examples < 1:
            raise ValueError(f"--old_examples is {self.old_examples}; it must be at least 1.")

    def learner(self, model: nn.Module, training: TrainingArguments) -> GPM:
        """The learner that the flags ask for; with `continual`.

        Raises:
            ValueError, TypeError: as GPM, TRGP and CUBER.
        """
        rate = self.continual_scale_learning_rate
        settings: dict[str, Any] = {
            "energy": self.continual_energy,
            "eps1": self.continual_eps1,
            "eps2": self.continual_eps2,
            "scale_learning_rate": training.learning_rate / 10 if rate is None else rate,
            # A denoiser's single step says little: its noise levels are drawn anew in each.
            "check": "ema",
        }
        learner = build_learner(Arguments(learner=str(self.continual), **settings), model)
        assert learner is not None
        return learner

    def some(self, dataset: Any) -> list[int]:
        """Indices of the old data that are looked at, `old_examples` of them spread over all."""
        count = min(self.old_examples, len(dataset))
        return [k * len(dataset) // count for k in range(count)]


def go_on(
    task: Task, model: nn.Module, old: Dataset, new: Dataset, training: TrainingArguments, learner: GPM
) -> None:
    """Trains a finished model on new data, and keeps what it does with old ones.

    Into `output_dir` go the model as it is for the new data, as the task saves it; in `continual/` the
    learner's memory, and, for TRGP and CUBER, the model without the new task's scale matrices: for the old
    data, and for `GPM.load` to go on with.

    Args:
        task: the losses, for old and new data alike.
        model: what of it is trained; that of the learner.
        old: examples of what the model was trained on; all of them are looked at.
        new: what it is trained on now.
        training: how.
        learner: without a task yet.

    Raises:
        ValueError: a learner that has tasks already, or a task that does not train the model.
    """
    if learner.tasks:
        raise ValueError(f"This learner has {len(learner.tasks)} tasks already; go on with `learn`.")
    slot, looked_at = module_name(task, model), range(len(old))  # type: ignore[arg-type]
    model.to(PartialState().device)
    learner.begin_task(task)
    learner.end_task(DataLoader(Subset(old, looked_at), batch_size=128))
    learn(task, new, training, learner, examples=len(looked_at))
    if not PartialState().is_main_process:
        return
    output = Path(training.output_dir)
    with learner.use_task(1) as network:
        save_into(output, lambda folder: task.save(folder, {slot: network}))
    learner.save(output / MEMORY)
    if isinstance(learner, TRGP):
        model.save_pretrained(output / MEMORY / slot)  # type: ignore[operator]
