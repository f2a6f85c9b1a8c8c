"""The fine-tunings that signatures are taken from, and their accuracies, on images that ship.

θ_0 learns the first half of the clean training images, θ_s goes on with the second half, and each θ_c with
the same second half under its corruption, drawn anew in every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from .... import data
from ....data.corruptions import Corruption
from ....data.dataset import Rows
from ....metrics.classification import accuracy
from ....training.arguments import TrainingArguments, hint
from ....training.classifying import ClassificationTask
from ....training.networks import ConvNet
from ....training.randomness import Draws
from ....training.trainer import Step, Trainer
from ... import stage
from . import quantizing
from .evaluating import Rule, evaluate_corruptions
from .patching import patch
from .signature import RobustWeightSignature


@dataclass
class Arguments:
    """What is made robust, against what."""

    dataset: str = field(default="fashion-mnist", metadata=hint("A data set with labels."))
    resolution: int = field(default=16, metadata=hint("Side of its images in pixels."))
    images: int = field(default=4000, metadata=hint("Training images; half for the base, half for the rest."))
    test_images: int = field(default=1000, metadata=hint("Images to measure on."))
    corruptions: list[str] = field(
        default_factory=lambda: ["impulse_noise", "gaussian_blur", "contrast"],
        metadata=hint("Names of dmkit.data.corruptions, NAME or NAME:SEVERITY (5 by default)."),
    )
    layers: str = field(default="conv:4", metadata=hint("conv:K, or a regular expression of parameters."))
    levels: int = field(default=16, metadata=hint("Levels of the saved signatures; 0: float32."))
    standard_epochs: int = field(default=4, metadata=hint("Epochs of the clean fine-tuning."))
    robust_epochs: int = field(default=10, metadata=hint("Epochs of each robust fine-tuning."))
    finetune_learning_rate: float = field(default=0.01, metadata=hint("Learning rate of all fine-tunings."))
    proximal: float = field(
        default=0.0, metadata=hint("mu of (mu/2) ||theta - theta_0||^2 while fine-tuning.")
    )

    def __post_init__(self) -> None:
        self.rules()
        if self.levels:
            quantizing.check(self.levels, "linear")
        for name in ("images", "test_images", "standard_epochs", "robust_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1.")

    def rules(self) -> list[Corruption]:
        """The corruptions.

        Raises:
            ValueError: an unknown name or severity, none, or one twice.
        """
        chosen = []
        for text in self.corruptions:
            name, colon, severity = text.partition(":")
            if colon and not severity.isdigit():
                raise ValueError(f"--corruptions takes NAME or NAME:SEVERITY, not {text!r}.")
            chosen.append(Corruption(name, int(severity) if colon else 5))
        if not chosen or len({c.name for c in chosen}) < len(chosen):
            raise ValueError(f"--corruptions takes different corruptions, not {self.corruptions}.")
        return chosen


class FineTuning(ClassificationTask):
    """Classification from given weights on, with corrupted inputs and, where wanted, a pull to the start.

    Args:
        model: its present weights are θ_0.
        rule: what corrupts the inputs; None for clean ones.
        proximal: μ of the term (μ/2) ‖θ - θ_0‖² over all parameters, which keeps θ where it acts linearly.

    Raises:
        ValueError: a negative μ.
    """

    def __init__(self, model: nn.Module, *, rule: Rule | None = None, proximal: float = 0.0):
        super().__init__(model, augment=None if rule is None else self._corrupted)
        if proximal < 0:
            raise ValueError(f"proximal is {proximal}; it must be at least 0.")
        self.rule, self.proximal = rule, proximal
        self.start = [p.detach().clone() for p in model.parameters()]

    def _corrupted(self, inputs: Tensor, draws: Draws) -> Tensor:
        if self.rule is None:
            return inputs
        # A seed of this process's rows, so that no two processes corrupt their images alike.
        seed = int(draws.integers(2**62, (len(inputs),))[0])
        return self.rule(inputs, torch.Generator(inputs.device).manual_seed(seed))

    def prepare(self, device: torch.device) -> None:
        self.start = [value.to(device) for value in self.start]

    def settings(self) -> dict[str, Any]:
        return {"rule": repr(self.rule), "proximal": self.proximal}

    def training_step(self, batch: Any, step: Step) -> dict[str, Tensor]:
        losses = super().training_step(batch, step)
        if self.proximal:
            now = self.modules["model"].parameters()
            squares = [(p - start).square().sum() for p, start in zip(now, self.start, strict=True)]
            losses["proximal"] = self.proximal / 2 * torch.stack(squares).sum()
        return losses


def fit(
    start: nn.Module | dict[str, Any],
    images: Tensor,
    labels: Tensor,
    training: TrainingArguments,
    *,
    rule: Rule | None = None,
    proximal: float = 0.0,
) -> ConvNet:
    """A `ConvNet` trained from the weights of another one, which stays as it is, or from its config."""
    torch.manual_seed(training.seed)
    if isinstance(start, nn.Module):
        model = ConvNet.from_config(start.config)
        model.load_state_dict(start.state_dict())
    else:
        model = ConvNet(**start)
    task = FineTuning(model, rule=rule, proximal=proximal)
    trainer = Trainer(task, Rows(inputs=images, labels=labels), training)
    trainer.train()
    return trainer.unwrapped()["model"].eval()


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains θ_0, θ_s and a θ_c for each corruption, saves their signatures, and measures.

    Returns:
        "standard", and by corruption "robust" and "patched": accuracies as `evaluate_corruptions` has them;
        "all": those with every signature at 1 / C; "bytes" of the files beside "float32" of a whole network.
    """
    images, labels = _images(arguments, "train", arguments.images)
    test, answers = _images(arguments, "test", arguments.test_images)
    half = len(images) // 2
    config = {"in_channels": images.shape[1], "classes": int(labels.max()) + 1}

    base = fit(config, images[:half], labels[:half], stage(training, "base"))

    def finetune(name: str, epochs: int, rule: Rule | None = None) -> ConvNet:
        changes = {"num_epochs": epochs, "learning_rate": arguments.finetune_learning_rate}
        arguments_of_stage = stage(training, name, **changes)
        rows = images[half:], labels[half:]
        return fit(base, *rows, arguments_of_stage, rule=rule, proximal=arguments.proximal)

    standard = finetune("standard", arguments.standard_epochs)
    rules = arguments.rules()
    figures: dict[str, Any] = {
        "base": accuracy(base, test, answers),
        "standard": evaluate_corruptions(standard, test, answers, rules),
        "float32": sum(p.numel() * 4 for p in standard.parameters()),
    }
    signatures = {}
    for rule in rules:
        robust = finetune(f"robust-{rule.name}", arguments.robust_epochs, rule)
        signature = RobustWeightSignature.extract(
            base,
            standard,
            robust,
            arguments.layers,
            inputs=test[:1],
            corruption=rule.name,
            severity=rule.severity,
        )
        if arguments.levels:
            signature = signature.quantize(arguments.levels)
        folder = Path(training.output_dir) / f"signature-{rule.name}"
        if PartialState().is_main_process:  # all have the same; two that replace one folder would collide
            signature.save_pretrained(folder)
        PartialState().wait_for_everyone()
        with patch(standard, signature):
            patched = evaluate_corruptions(standard, test, answers, rules)
        figures[rule.name] = {
            "robust": evaluate_corruptions(robust, test, answers, rules),
            "patched": patched,
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        }
        signatures[rule.name] = signature
    with patch(standard, signatures):
        figures["all"] = evaluate_corruptions(standard, test, answers, rules)
    return figures


def _images(arguments: Arguments, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their labels."""
    dataset = data.load(arguments.dataset, split=split, resolution=arguments.resolution)
    if dataset.labels is None:
        raise ValueError(f"{arguments.dataset} has no labels.")
    return dataset.images_uint8(range(min(count, len(dataset)))).float() / 255, dataset.labels[:count]
