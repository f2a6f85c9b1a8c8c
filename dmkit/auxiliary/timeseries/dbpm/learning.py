"""SimCLR and TS-TCC with a miner, as tasks of the trainer.

An epoch is a permutation of the data set in batches of one size, of all processes together; what is left
over waits for another epoch. All processes gather the embeddings, so that negatives, losses, the memory and
gradients are those of one process with the whole batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from ....data import Rows
from ....training.arguments import TrainingArguments
from ....training.randomness import derive_seed
from ....training.trainer import Step, Task, Trainer
from .losses import nt_xent
from .miner import BadPairMiner
from .networks import gathered
from .pairs import Pairs


class SimCLR(Task):
    """NT-Xent of the heads' outputs; with a miner, weighted. Subclass it for another learner.

    Args:
        encoder: (B, C, T) -> (B, D).
        head: (B, D) -> (B, outputs).
        pairs: the data set.
        miner: of as many samples; None for plain SimCLR.
        temperature: of NT-Xent.
        seed: of the order of samples.

    Attributes:
        history: the miner's statistics, an entry for each epoch after its warm-up. After a resumption it
            starts there.

    Raises:
        ValueError: a miner of another number of samples.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        pairs: Pairs,
        miner: BadPairMiner | None = None,
        temperature: float = 0.2,
        seed: int = 0,
    ):
        if miner is not None and miner.config.num_samples != len(pairs):
            raise ValueError(
                f"The miner has a memory of {miner.config.num_samples} samples; there are {len(pairs)}."
            )
        self.modules = {"encoder": encoder, "head": head, **({} if miner is None else {"miner": miner})}
        self.pairs, self.miner, self.temperature, self.seed = pairs, miner, temperature, seed
        self.history: list[dict[str, Any]] = []
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def prepare(self, device: torch.device) -> None:
        self.pairs.to(device)
        if self.miner is not None:
            self.miner.to(device)

    def settings(self) -> dict[str, Any]:
        mined = {} if self.miner is None else {k: v for k, v in self.miner.config.items() if k[0] != "_"}
        return {"learner": type(self).__name__, "temperature": self.temperature, "seed": self.seed} | mined

    def rows(self, step: int, size: int) -> tuple[int, Tensor]:
        """The epoch of a step, and the rows (size,) of all processes."""
        epoch, k = divmod(step, len(self.pairs) // size)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, 8))
            self._order = epoch, torch.randperm(len(self.pairs), generator=generator)
        return epoch, self._order[1][k * size : (k + 1) * size]

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        own = batch["row"]
        epoch, rows = self.rows(step.number, len(own) * step.world)
        rows = rows.to(own.device)
        u, v = self.pairs.views(rows[step.rank * len(own) :][: len(own)], step.draws)
        losses, others = self.losses(u, v, step)
        if self.miner is not None:
            if int(self.miner.epoch) != epoch:
                self.miner.start_epoch(epoch)
                if epoch >= self.miner.config.warmup_epochs:
                    self.history.append(self.miner.statistics())
            losses = self.miner.weights(rows, losses) * losses  # (5)
        return {"contrast": losses.mean(), **others}

    def losses(self, u: Tensor, v: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Of views (B, C, T) of this process: each pair's loss, for the batches of all processes; and means
        that no miner weighs.
        """
        z = self.modules["head"](self.modules["encoder"](torch.cat([u, v])))
        u, v = z.chunk(2)
        return nt_xent(gathered(u), gathered(v), self.temperature), {}


class TSTCC(SimCLR):
    """TS-TCC (Eldele et al. 2021, arXiv:2106.14112): contexts of one view foretell the features of the other,
    and are told from each other by NT-Xent. The miner sees the latter only.

    Args: as SimCLR; `encoder(x, pooled=False)` gives (B, D, T'), and `head` is a `Forecaster`, whose horizon
    is shorter than T'.
    """

    def losses(self, u: Tensor, v: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        maps = self.modules["encoder"](torch.cat([u, v]), pooled=False)
        horizon = _plain(self.modules["head"]).config.horizon
        if (room := maps.shape[2] - horizon) < 1:
            raise ValueError(f"A horizon of {horizon} leaves nothing of {maps.shape[2]} steps.")
        past = 1 + derive_seed(self.seed, step.number, 9) % room
        foretold, z = self.modules["head"](maps[:, :, :past])
        future = maps[:, :, past : past + horizon]
        (a, b), (p, q) = map(_halves, (future, foretold))
        u, v = _halves(z)
        temporal = _foretelling(p, b) + _foretelling(q, a)
        return 0.7 * nt_xent(u, v, self.temperature), {"temporal": temporal}


def _plain(module: nn.Module) -> Any:
    """What DistributedDataParallel wraps."""
    return getattr(module, "module", module)


def _halves(z: Tensor) -> tuple[Tensor, Tensor]:
    u, v = z.chunk(2)
    return gathered(u), gathered(v)


def _foretelling(foretold: Tensor, there: Tensor) -> Tensor:
    """Mean cross-entropy of finding one's own future, (B, D, K) both, among those of the batch."""
    scores = torch.einsum("idk,jdk->kij", foretold.float(), there.float())
    own = torch.arange(len(there), device=there.device).expand(len(scores), -1)
    return F.cross_entropy(scores.flatten(0, 1), own.flatten())


Learner = TypeVar("Learner", bound=SimCLR)


def pretrain(task: Learner, training: TrainingArguments) -> Learner:
    """Trains for `training.num_epochs` and saves encoder, head and miner.

    Raises:
        ValueError: a batch larger than the data set or of one pair, or accumulated gradients.
        TrainingError: a loss that is not finite.
    """
    # Whoever asks first decides; this is how the trainer asks.
    world = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes
    size, count = training.train_batch_size * world, len(task.pairs)
    if not 2 <= size <= count:
        raise ValueError(f"A batch has {size} pairs; 2 to {count}, all there are, would do.")
    if training.gradient_accumulation_steps > 1:
        raise ValueError("The negatives are those of a batch; gradient_accumulation_steps must be 1.")
    if task.miner is not None and task.miner.config.warmup_epochs >= training.num_epochs:
        warnings.warn(
            f"A warm-up of {task.miner.config.warmup_epochs} epochs in {training.num_epochs} leaves none to "
            "the miner.",
            stacklevel=2,
        )
    steps = training.max_train_steps or training.num_epochs * (count // size)
    # The task has an order of its own; the trainer's says only how many rows a batch has.
    Trainer(task, Rows(row=torch.arange(count)), replace(training, max_train_steps=steps)).train()
    return task
