"""Two teachers in one network: the frozen one, and the one that learns what the student makes, which is the
same network with a LoRA on (SwiftBrush, Nguyen and Tran, CVPR 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..training.part import TrainedPart
from ..training.prompting import Conditions, predict

ADAPTER = "fake"
# SwiftBrush's code has the first and third of these; PG-SB does not say.
TARGET_MODULES = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class LoRA:
    """The learning teacher's LoRA.

    Args:
        rank: at least 1.
        alpha: it is scaled by alpha / rank.
        target_modules: ends of the names of the layers that get it.
        learning_rate: of its optimiser, positive; far above the student's, since it has to keep up with it.

    Raises:
        ValueError: values out of range.
    """

    rank: int = 64
    alpha: float = 128
    target_modules: tuple[str, ...] = TARGET_MODULES
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"The rank of the LoRA is {self.rank}; it must be at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"lora_learning_rate is {self.learning_rate}; it must be positive.")


class Teachers:
    """A denoiser with a LoRA that is on or off.

    PixArt's transformer has no adapter methods of its own, so the layers are toggled one by one.

    Args:
        network: the teacher; it is frozen, and its layers get the LoRA in place.
        lora: the LoRA.

    Attributes:
        fake: the learning teacher, whose parameters are the LoRA's alone.

    Raises:
        ValueError: a network that has adapters already, or no layer of these names.
    """

    def __init__(self, network: nn.Module, lora: LoRA):
        if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
            raise ValueError("The teacher has adapters, not to be told from the LoRA: fuse them first.")
        targets = lora.target_modules
        if not any(name.endswith(targets) for name, _ in network.named_modules()):
            raise ValueError(f"{type(network).__name__} has no layer named {', '.join(targets)}.")
        self.network = network.eval().requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets)),  # type: ignore[arg-type]
            network,
            ADAPTER,
        )
        self._layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.fake = TrainedPart(network, trained)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The network as it was given, inside."""
        try:
            for layer in self._layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def both(self, x: Tensor, t: Tensor, real: Conditions, fake: Conditions) -> tuple[Tensor, Tensor]:
        """What the frozen and the learning teacher say to their conditions; each is called once."""
        with self.frozen():
            said = predict(self.network, x, t, real)
        return said, predict(self.network, x, t, fake)
