"""Training a backbone and a head, and the targets that old and new teachers give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...._files import atomic_file, load_tensors
from ....errors import FileFormatError
from ....metrics.classification import predict
from ....training.randomness import Draws
from ....training.trainer import Step, Task
from .head import BT2Output, Head, head_parameters


class Encoder(nn.Module):
    """A backbone and a head as one function from inputs to the vectors that are stored."""

    def __init__(self, backbone: nn.Module, head: Head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, d)."""
        return self.head(self.backbone(inputs)).embedding


class EncoderTask(Task):
    """Trains a backbone and a head together.

    Args:
        backbone: inputs (B, ...) -> features (B, in_features), with `save_pretrained` and `from_pretrained`.
        head: features -> `BT2Output`.
        loss: one of `losses`; gets the head's output and the batch.
        augment: inputs, draws -> inputs, anew in every step. Targets stay those of the plain inputs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        loss: Callable[[BT2Output, Mapping[str, Tensor]], dict[str, Tensor]],
        *,
        augment: Callable[[Tensor, Draws], Tensor] | None = None,
    ):
        self.modules = {"backbone": backbone, "head": head}
        self.loss, self.augment = loss, augment

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        backbone = [p for p in self.modules["backbone"].parameters() if p.requires_grad]
        return [{"params": backbone}, *head_parameters(self.modules["head"])]

    def prepare(self, device: torch.device) -> None:
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        inputs = batch["inputs"]
        if self.augment is not None:
            inputs = self.augment(inputs, step.draws)
        return self.loss(self.modules["head"](self.modules["backbone"](inputs)), batch)


def build_targets(
    encoder: Callable[[Tensor], Tensor], inputs: Tensor, path: Path | None = None, batch_size: int = 512
) -> Tensor:
    """The vectors of a frozen encoder, of unit length, row by row as the inputs are.

    They are computed once, of the inputs as they are, so that what a student is to match does not depend on
    an augmentation that it does not see.

    Args:
        encoder: (B, ...) -> (B, d); put into eval mode meanwhile.
        inputs: (N, ...).
        path: a safetensors file that is written, or read if it is there.
        batch_size: inputs at a time.

    Returns:
        (N, d) float32.

    Raises:
        FileFormatError: a damaged file, or one of another number of rows.
    """
    if path is not None and path.is_file():
        targets = load_tensors(path).get("targets")
        if targets is None or len(targets) != len(inputs):
            raise FileFormatError(f"{path} does not hold the targets of {len(inputs)} inputs.")
        return targets
    targets = F.normalize(predict(encoder, inputs, batch_size), dim=1)
    if path is not None:
        with atomic_file(path) as draft:
            save_file({"targets": targets}, str(draft))
        return load_tensors(path)["targets"]
    return targets
