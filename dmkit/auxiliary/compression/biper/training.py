"""The two stages on images that ship."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from .... import data
from ....data.dataset import Rows
from ....metrics.classification import accuracy
from ....training.arguments import TrainingArguments, hint
from ....training.classifying import ClassificationTask
from ....training.trainer import Step, Trainer
from ... import stage
from .converting import binary_layers, set_stage
from .functions import check_omega, wave
from .measuring import quantization_error
from .networks import BinaryResNet
from .packing import export_packed, load_packed


@dataclass
class Arguments:
    """What is trained, and how its second stage differs."""

    dataset: str = field(default="fashion-mnist", metadata=hint("A data set with labels."))
    resolution: int = field(default=16, metadata=hint("Side of its images in pixels."))
    images: int = field(default=6000, metadata=hint("Training images."))
    test_images: int = field(default=2000, metadata=hint("Images to measure on."))
    widths: list[int] = field(default_factory=lambda: [16, 32], metadata=hint("Channels of the network."))
    depth: int = field(default=3, metadata=hint("Binary convolutions of each width."))
    omega: float = field(default=20.0, metadata=hint("Frequency of the square wave."))
    tau: float = field(default=0.037, metadata=hint("Weight of the mean of sin(omega w)^2."))
    second_epochs: int = field(default=5, metadata=hint("Epochs of stage 2."))
    second_learning_rate: float = field(default=0.0088, metadata=hint("Learning rate of stage 2."))
    second_weight_decay: float = field(default=1.6e-4, metadata=hint("SGD's weight decay in stage 2."))

    def __post_init__(self) -> None:
        check_omega(self.omega)
        if self.tau < 0:
            raise ValueError(f"--tau is {self.tau}; it must be at least 0.")
        for name in ("images", "test_images", "depth", "second_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1.")


def periodic_penalty(model: nn.Module, tau: float) -> Tensor:
    """τ Σ_layers mean s(w)², (5): it draws latent weights to the zeros of the wave, where it is steepest."""
    terms = [wave(layer.weight, layer.omega).square().mean() for layer in binary_layers(model).values()]
    return tau * torch.stack(terms).sum()


class BinaryClassificationTask(ClassificationTask):
    """Classification by a network with binary layers; no weight decay of α, norms and biases.

    Args:
        model: the network.
        tau: τ of (5); 0 leaves the term out.
    """

    def __init__(self, model: nn.Module, *, tau: float = 0.0):
        super().__init__(model)
        self.tau = tau

    def settings(self) -> dict[str, Any]:
        return {"tau": self.tau}

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]

    def training_step(self, batch: Any, step: Step) -> dict[str, Tensor]:
        losses = super().training_step(batch, step)
        if self.tau:
            losses["periodic"] = periodic_penalty(self.modules["model"], self.tau)
        return losses


def fit(model: Any, images: Tensor, labels: Tensor, training: TrainingArguments, *, tau: float = 0.0) -> Any:
    """One stage; the model itself is trained, and returned in eval mode."""
    trainer = Trainer(BinaryClassificationTask(model, tau=tau), Rows(inputs=images, labels=labels), training)
    trainer.train()
    return trainer.unwrapped()["model"].eval()


def relative_error(model: nn.Module) -> float:
    """The mean over binary layers of `quantization_error`'s "relative"."""
    errors = [quantization_error(layer.weight, layer.omega) for layer in binary_layers(model).values()]
    return mean(error["relative"] for error in errors)


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains both stages, exports packed bits into `packed`, and measures with them.

    Returns:
        Accuracies, shares of 1: "stage 1", of real weights; "binarised", with their signs; "stage 2".
        "relative error 1" and "2": of the weights after either stage. "bytes" of the packed file, and
        "float32", those of the same tensors.
    """
    images, labels = _images(arguments, "train", arguments.images)
    test, answers = _images(arguments, "test", arguments.test_images)
    torch.manual_seed(training.seed)
    model = BinaryResNet(
        images.shape[1], arguments.widths, arguments.depth, int(labels.max()) + 1, arguments.omega
    )
    model = fit(model, images, labels, stage(training, "stage-1"), tau=arguments.tau)
    figures: dict[str, Any] = {"stage 1": accuracy(model, test, answers)}
    figures["relative error 1"] = relative_error(model)
    set_stage(model, "binary")
    figures["binarised"] = accuracy(model, test, answers)
    second = {
        "num_epochs": arguments.second_epochs,
        "max_train_steps": None,
        "learning_rate": arguments.second_learning_rate,
        "sgd_weight_decay": arguments.second_weight_decay,
    }
    model = fit(model, images, labels, stage(training, "stage-2", **second), tau=arguments.tau)
    figures["relative error 2"] = relative_error(model)
    folder = Path(training.output_dir) / "packed"
    figures["bytes"] = export_packed(model, folder)
    figures["float32"] = sum(value.numel() * 4 for value in model.state_dict().values())
    figures["stage 2"] = accuracy(load_packed(model, folder), test, answers)
    return figures


def _images(arguments: Arguments, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their labels."""
    dataset = data.load(arguments.dataset, split=split, resolution=arguments.resolution)
    if dataset.labels is None:
        raise ValueError(f"{arguments.dataset} has no labels.")
    return dataset.images_uint8(range(min(count, len(dataset)))).float() / 255, dataset.labels[:count]
