"""Training on windows, from random weights or from those of another hospital, as a task of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast, parse_flag_from_env
from safetensors.torch import save_file
from torch import Tensor, nn

from ...._files import load_tensors
from ....errors import FileFormatError, unknown_name
from ....metrics.classification import balanced_accuracy
from ....training.arguments import TrainingArguments
from ....training.trainer import Step, Task, Trainer
from .networks import WEIGHTS, EEGNetwork
from .predicting import mean_loss, predict_proba
from .recordings import EEGWindows, Recordings, check_disjoint

STRATEGIES = ("scratch", "finetune", "linear_probe", "partial", "discriminative", "joint")
STATE = "state.safetensors"


@dataclass(frozen=True)
class Transfer:
    """How a network of the source becomes one of the target.

    Attributes:
        strategy: "scratch" and "joint" begin with random weights, the latter with both hospitals' recordings;
            the others with the source's: "finetune" trains all, "linear_probe" the head, "partial" all but
            the first `frozen_blocks`, "discriminative" each block `layer_decay` times slower than the one
            above it.
        frozen_blocks: of "partial".
        layer_decay: of "discriminative", at least 1; 1 is "finetune".
        freeze_norm: keep the statistics of batch norms, which few recordings spoil.
        class_weight: "none", or "balanced": a recording's loss counts by how rare its class is.

    Raises:
        ValueError: values out of range.
    """

    strategy: str = "finetune"
    frozen_blocks: int = 1
    layer_decay: float = 2.6
    freeze_norm: bool = False
    class_weight: str = "none"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise unknown_name("strategy", self.strategy, STRATEGIES)
        if self.class_weight not in ("none", "balanced"):
            raise unknown_name("class_weight", self.class_weight, ("none", "balanced"))
        if self.frozen_blocks < 0:
            raise ValueError(f"frozen_blocks is {self.frozen_blocks}; it must be at least 0.")
        if not self.layer_decay >= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be at least 1.")

    def start(self, source: EEGNetwork, seed: int) -> EEGNetwork:
        """The network to train; the source's stays as it is."""
        if self.strategy in ("scratch", "joint"):
            return source.fresh(seed)
        network = source.copied()
        frozen = {"linear_probe": None, "partial": self.frozen_blocks}.get(self.strategy, 0)
        return network.freeze(frozen, norms=self.freeze_norm)


class Selection(nn.Module):
    """The network as it was after the best epoch so far, by validation; checkpointed with the rest.

    Args:
        state: weights by name; copied.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        self.names = sorted(state)
        for k, name in enumerate(self.names):
            self.register_buffer(f"value_{k}", state[name].detach().clone())
        # Epoch last looked at, best epoch, its balanced accuracy and its loss.
        self.register_buffer("record", torch.tensor([0.0, 0.0, -1.0, torch.inf], dtype=torch.float64))

    def consider(self, epoch: int, accuracy: float, loss: float, state: Mapping[str, Tensor]) -> None:
        """Keeps a state that is better: by balanced accuracy, then by loss."""
        self.record[0] = epoch
        if (accuracy, -loss) > (float(self.record[2]), -float(self.record[3])):
            self.record[1:] = self.record.new_tensor([epoch, accuracy, loss])
            for k, name in enumerate(self.names):
                getattr(self, f"value_{k}").copy_(state[name])

    def state(self) -> dict[str, Tensor]:
        """The weights that are kept."""
        return {name: getattr(self, f"value_{k}") for k, name in enumerate(self.names)}

    def save_pretrained(self, folder: Path) -> None:
        """Writes them, and the record."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        values = {"record": self.record, **{f"state.{name}": v for name, v in self.state().items()}}
        save_file({k: v.cpu().contiguous().clone() for k, v in values.items()}, str(Path(folder) / STATE))

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> Selection:
        """The inverse of `save_pretrained`."""
        values = load_tensors(Path(folder) / STATE)
        if "record" not in values:
            raise FileFormatError(f"{folder} is not of a selection by validation.")
        made = cls({k.removeprefix("state."): v for k, v in values.items() if k != "record"})
        made.record.copy_(values["record"])
        return made


class Trained(nn.Module):
    """A network as the trainer has it: its checkpoints are the weights alone, so that any module will do."""

    def __init__(self, network: EEGNetwork):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, window) -> (B, classes, predictions)."""
        return self.network(x)

    def save_pretrained(self, folder: Path) -> None:
        """Writes weights and contract."""
        self.network.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> _Weights:
        """The weights that `save_pretrained` wrote."""
        return _Weights(load_tensors(Path(folder) / WEIGHTS))


@dataclass(frozen=True)
class _Weights:
    """What the trainer asks of a checkpoint."""

    values: dict[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        return {f"network.network.{name}": value for name, value in self.values.items()}


class Cropped(Task):
    """Cross-entropy of a window's logits, averaged over time.

    Args:
        network: trained, but for what is frozen in it.
        labels: of the recordings of the training, for the weights of classes.
        transfer: how.
        learning_rate: of the head.
        steps: of an epoch.
        valid: recordings that choose the epoch; None keeps the last one.

    Attributes:
        history: (epoch, balanced accuracy, loss) of validation.
    """

    def __init__(
        self,
        network: EEGNetwork,
        labels: list[int],
        transfer: Transfer,
        learning_rate: float,
        steps: int,
        valid: Recordings | None = None,
    ):
        self.network, self.transfer, self.valid = network, transfer, valid
        self.modules = {"network": Trained(network)}
        if valid is not None:
            self.modules["selection"] = Selection(network.network.state_dict())
        self.learning_rate, self.steps = learning_rate, steps
        self.history: list[tuple[int, float, float]] = []
        counts = torch.bincount(torch.tensor(labels), minlength=len(network.signal.classes)).float()
        self.weights = torch.ones(len(counts))
        if transfer.class_weight == "balanced":
            self.weights = counts.sum() / (len(counts) * counts)

    def prepare(self, device: torch.device) -> None:
        self.weights = self.weights.to(device)

    def settings(self) -> dict[str, Any]:
        return {f"transfer_{name}": value for name, value in asdict(self.transfer).items()}

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        if self.transfer.strategy != "discriminative":
            return [{"params": parameters}]
        groups = self.network.rate_groups(self.transfer.layer_decay)
        return [{"params": part, "lr": share * self.learning_rate} for share, part in groups]

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        if self.valid is not None and step.number and step.number % self.steps == 0:
            self.look(step.number // self.steps)
        logits = self.modules["network"](batch["x"]).float().mean(2)
        losses = F.cross_entropy(logits, batch["y"], reduction="none") * self.weights[batch["y"]]
        return {"classes": losses.mean()}

    def look(self, epoch: int) -> None:
        """Validation after an epoch, unless it was looked at. All processes come here together."""
        for buffer in self.network.buffers():  # the statistics of batch norms are a process's own
            buffer.copy_(broadcast(buffer))
        selection = self.modules.get("selection")
        if self.valid is None or not isinstance(selection, Selection) or epoch <= int(selection.record[0]):
            return
        probabilities = predict_proba(self.network, self.valid)
        labels = torch.tensor(self.valid.labels)
        accuracy, loss = balanced_accuracy(probabilities.argmax(1), labels), mean_loss(probabilities, labels)
        self.history.append((epoch, accuracy, loss))
        selection.consider(epoch, accuracy, loss, self.network.network.state_dict())

    def finish(self, epochs: int) -> None:
        """After the last epoch: the network becomes the one of the best."""
        self.look(epochs)
        if isinstance(selection := self.modules.get("selection"), Selection):
            self.network.load_weights(selection.state())

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        self.network.save_pretrained(folder / "network")


def fit(
    network: EEGNetwork,
    train: Recordings,
    training: TrainingArguments,
    *,
    transfer: Transfer | None = None,
    valid: Recordings | None = None,
) -> EEGNetwork:
    """Trains a network on recordings, in place, and saves it as `network` in the output folder.

    A batch is never larger than the number of windows, and none is dropped, so that a handful of recordings
    train, too.

    Args:
        network: with what is to be frozen frozen, see `Transfer.start`.
        train: recordings.
        training: arguments of the trainer.
        transfer: for rates of layers and weights of classes.
        valid: recordings of other participants; if given, the network is that of the best epoch by their
            balanced accuracy.

    Raises:
        ValueError: recordings that are not what the network takes, a class without a recording, a
            participant in both parts.
        TrainingError: a loss that is not finite.
    """
    transfer = transfer or Transfer()
    if training.use_ema:
        raise ValueError("Averaged weights (use_ema) are not to be had here; validation chooses the epoch.")
    network.signal.check(train.signal, "The recordings to train on")
    for label, name in enumerate(train.signal.classes):
        if label not in train.labels:
            raise ValueError(f"No recording to train on is {name}.")
    if valid is not None:
        network.signal.check(valid.signal, "The recordings to validate on")
        check_disjoint(train=train, validation=valid)
    windows = EEGWindows(train, network.window, network.stride)
    # Whoever asks first decides; this is how the trainer asks.
    world = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes
    size = min(training.train_batch_size, max(1, len(windows) // world))
    changed = replace(training, train_batch_size=size)
    whole = size * world * training.gradient_accumulation_steps
    steps = -(-len(windows) // whole)
    task = Cropped(network, train.labels, transfer, training.learning_rate, steps, valid)
    trainer = Trainer(task, windows, changed)
    trainer.train()
    task.finish(-(-trainer.max_steps // steps))
    trainer.save()
    return network


def adapt(
    source: EEGNetwork,
    train: Recordings,
    training: TrainingArguments,
    transfer: Transfer,
    *,
    also: Recordings | None = None,
    valid: Recordings | None = None,
) -> EEGNetwork:
    """A network of the target, by one of the strategies; the source's stays as it is.

    Args:
        source: trained on the source.
        train: recordings of the target.
        training: arguments of the trainer.
        transfer: which strategy.
        also: recordings of the source, for "joint".
        valid: as of `fit`.

    Raises:
        ValueError: "joint" without recordings of the source; and as `fit`.
    """
    if transfer.strategy == "joint":
        if also is None:
            raise ValueError('The strategy "joint" needs recordings of the source.')
        train = train.joined(also)
    network = transfer.start(source, training.seed)
    return fit(network, train, training, transfer=transfer, valid=valid)
