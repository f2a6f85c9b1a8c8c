"""BT² and what it is compared with, on the digits of scikit-learn under noise.

An old model knows the first classes only. A new one is trained on all, once without a thought of the old one
(its vectors are then BT²'s targets), once by BCT, and once by BT² for each number of added dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....data import Rows
from ....data.digits import digit_tensors
from ....metrics.classification import predict
from ....metrics.ranking import retrieval_metrics
from ....training.arguments import TrainingArguments, hint
from ....training.networks import MLP, ConvNet
from ....training.randomness import derive_seed
from ....training.trainer import Trainer
from ... import stage
from .head import BasisTransformationHead, EmbeddingHead, Head
from .losses import BCTLoss, BT2Loss, ClassificationLoss, PseudoClassifier
from .scoring import common_prefix, compatibility
from .tasks import Encoder, EncoderTask, build_targets

CLASSES = 10


@dataclass
class Arguments:
    """BT² on digits."""

    old_classes: int = field(default=4, metadata=hint("Classes that the old model knows."))
    dim_old: int = field(default=8, metadata=hint("Length of the old model's vectors."))
    dim_new: int = field(default=8, metadata=hint("Length of the new teacher's vectors."))
    extra_dims: list[int] = field(
        default_factory=lambda: [8], metadata=hint("Dimensions that BT2 adds; a model is trained for each.")
    )
    scale: float = field(default=2.0, metadata=hint("Weight C of the new space."))
    match: float = field(default=1.0, metadata=hint("Weight of the new teacher's vectors in the loss."))
    influence: float = field(default=10.0, metadata=hint("Weight of the old space's pseudo classifier."))
    old: float = field(default=5.0, metadata=hint("Weight of the old model's vectors."))
    logit_scale: float = field(default=8.0, metadata=hint("Factor of the classifier's logits."))
    noise: float = field(default=0.25, metadata=hint("Deviation of the pixels' noise."))
    train_size: int = field(default=500, metadata=hint("Digits to train on."))
    test_size: int = field(default=500, metadata=hint("Digits to search."))


@dataclass(frozen=True)
class Digits:
    """Digits under noise, to train on and to search."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    @classmethod
    def draw(cls, arguments: Arguments, seed: int) -> Digits:
        """A seeded choice of digits, with the noise that they keep.

        Raises:
            ValueError: more digits than there are.
        """
        images, labels = digit_tensors(seed)
        train, test = arguments.train_size, arguments.test_size
        if not 0 < train < train + test <= len(images):
            raise ValueError(f"train_size and test_size share {len(images)} digits; not {train} and {test}.")
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        images = images + arguments.noise * torch.randn(images.shape, generator=generator)
        rows = slice(train, train + test)
        return cls(images[:train], labels[:train], images[rows], labels[rows])


def build_backbone(kind: str, outputs: int) -> nn.Module:
    """A network from 8x8 digits to `outputs` features; kind is "mlp" or "convnet"."""
    if kind == "convnet":
        return ConvNet(blocks=((16,), (32,)), classes=outputs)
    return MLP((64, 128, outputs))


def train_encoder(
    backbone: nn.Module,
    head: Head,
    loss: Callable[..., dict[str, Tensor]],
    columns: Mapping[str, Tensor],
    training: TrainingArguments,
) -> Encoder:
    """Trains a backbone and a head on rows of `inputs`, `labels` and targets."""
    trainer = Trainer(EncoderTask(backbone, head, loss), Rows(**columns), training)
    trainer.train()
    modules = trainer.unwrapped()
    return Encoder(modules["backbone"], modules["head"]).eval()


class Experiment:
    """The trainings on one choice of digits, each in its own folder."""

    def __init__(self, arguments: Arguments, training: TrainingArguments):
        self.arguments, self.training = arguments, training
        self.digits = Digits.draw(arguments, training.seed)
        self.columns = {"inputs": self.digits.inputs, "labels": self.digits.labels}

    def _train(self, name: str, kind: str, outputs: int, head: Callable[[], Head], loss: Any, **more: Tensor):
        # A seed for each: spaces of networks that began alike are comparable to begin with.
        torch.manual_seed(derive_seed(self.training.seed, *name.encode()))
        backbone = build_backbone(kind, outputs)
        return train_encoder(backbone, head(), loss, {**self.columns, **more}, stage(self.training, name))

    def independent(self, name: str, dim: int, classes: int = CLASSES, kind: str = "mlp") -> Encoder:
        """A model of the first classes without a thought of another."""
        here = self.digits.labels < classes
        rows = {key: values[here] for key, values in self.columns.items()}
        head = partial(EmbeddingHead, None, dim, CLASSES, self.arguments.logit_scale)
        return self._train(name, kind, dim, head, ClassificationLoss(), **rows)

    def bct(self, name: str, old: Encoder, kind: str = "mlp", extra_dim: int = 0) -> Encoder:
        """The baseline, with added dimensions that nothing holds to the old space."""
        pseudo, targets = self._old(old)
        dim_old = targets.shape[1]
        dim = dim_old + extra_dim
        head = partial(EmbeddingHead, None, dim, CLASSES, self.arguments.logit_scale, dim_old)
        return self._train(name, kind, dim, head, BCTLoss(pseudo, self.arguments.influence))

    def bt2(
        self,
        name: str,
        old: Encoder,
        teacher: Encoder,
        head: Callable[[], Head],
        kind: str = "mlp",
    ) -> Encoder:
        """BT² from an old model and a new teacher; the head takes u as the backbone's features."""
        pseudo, targets = self._old(old)
        new = build_targets(teacher, self.digits.inputs)
        a = self.arguments
        loss = BT2Loss(pseudo, match=a.match, influence=a.influence, old=a.old)
        outputs = new.shape[1] + targets.shape[1]
        return self._train(name, kind, outputs, head, loss, old=targets, new=new)

    def _old(self, old: Encoder) -> tuple[PseudoClassifier, Tensor]:
        targets = build_targets(old, self.digits.inputs)
        return PseudoClassifier.from_features(targets, self.digits.labels, CLASSES), targets

    def first_head(self, extra_dim: int) -> Callable[[], BasisTransformationHead]:
        """Makes BT²'s head over the old model."""
        a = self.arguments
        return partial(
            BasisTransformationHead, None, a.dim_new, a.dim_old, CLASSES, extra_dim, a.scale, a.logit_scale
        )

    def search(self, encoder: Encoder) -> Tensor:
        """Vectors of the digits that are searched."""
        return predict(encoder, self.digits.test_inputs)


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains all models.

    Returns:
        What `scoring.compatibility` says of each: `independent`, `bct`, `extra_{m}` (BCT with dimensions
        added naively) and `bt2_{m}`.
    """
    experiment = Experiment(arguments, training)
    a, labels = arguments, experiment.digits.test_labels
    old = experiment.independent("old", a.dim_old, a.old_classes)
    teacher = experiment.independent("new", a.dim_new)
    stored = experiment.search(old)
    models = {"independent": teacher, "bct": experiment.bct("bct", old)}
    for m in a.extra_dims:
        if m:
            models[f"extra_{m}"] = experiment.bct(f"extra-{m}", old, extra_dim=m)
        models[f"bt2_{m}"] = experiment.bt2(
            f"bt2-{m}",
            old,
            teacher,
            experiment.first_head(m),
        )
    return {name: compatibility(stored, experiment.search(model), labels) for name, model in models.items()}


def chain(
    arguments: Arguments, training: TrainingArguments, kinds: Sequence[str] = ("mlp", "convnet", "mlp")
) -> dict[str, dict[str, float]]:
    """A model after another, each compatible with its predecessor, by BT² and by BCT.

    Args:
        arguments: the first of `extra_dims` is added in every step.
        training: how each is trained.
        kinds: architectures; the first model is the old one.

    Returns:
        For `bt2`, `bct` and `independent` models: mAP of model i's queries in model j's gallery, j ≤ i, as
        "i/j".
    """
    experiment = Experiment(arguments, training)
    a, labels = arguments, experiment.digits.test_labels
    first = experiment.independent("chain-0", a.dim_old, a.old_classes, kinds[0])
    models: dict[str, list[Encoder]] = {name: [first] for name in ("independent", "bct", "bt2")}
    make: Callable[[], Head] = experiment.first_head(a.extra_dims[0])
    for k, kind in enumerate(kinds[1:], 1):
        teacher = experiment.independent(f"chain-teacher-{k}", a.dim_new, kind=kind)
        bt2 = experiment.bt2(f"chain-bt2-{k}", models["bt2"][-1], teacher, make, kind)
        make = partial(bt2.head.extend, None)
        bct = experiment.bct(f"chain-bct-{k}", models["bct"][-1], kind)
        for name, model in zip(models, (teacher, bct, bt2), strict=True):
            models[name].append(model)
    return {name: _by_gallery([experiment.search(m) for m in row], labels) for name, row in models.items()}


def _by_gallery(vectors: Sequence[Tensor], labels: Tensor) -> dict[str, float]:
    found = {}
    for i, query in enumerate(vectors):
        for j, gallery in enumerate(vectors[: i + 1]):
            shared = common_prefix(query, gallery)
            ranked = retrieval_metrics(
                query[:, :shared], gallery[:, :shared], labels, labels, exclude_self=True
            )
            found[f"{i}/{j}"] = ranked["map"]
    return found
