"""ScaleLong's arguments, shared by the training scripts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import refuse_idle
from ..training.arguments import hint
from ..training.trainer import Task
from .scaling import SkipScaling
from .stability import StabilityMonitor
from .unet import ScaleLongUNet2DConditionModel, ScaleLongUNet2DModel, become_like
from .uvit import UViTModel


@dataclass
class ScaleLongArguments:
    """How the denoiser's long skips are scaled, and whether its stability is measured."""

    scalelong: str | None = field(
        default=None, metadata=hint("Scale long skips: cs, ls or inv_sqrt2; not given: leave them.")
    )
    kappa: float = field(default=0.7, metadata=hint("Coefficient of --scalelong cs, in (0, 1]."))
    scalelong_index: str = field(
        default="skip", metadata=hint("What the exponent of --scalelong cs counts: skip or level.")
    )
    scalelong_init_gate: float = field(
        default=0.5, metadata=hint("Where the gates of --scalelong ls start; 0.98 for a trained model.")
    )
    stability_steps: int = field(
        default=0, metadata=hint("Steps between two stability reports in output_dir/stability; 0: none.")
    )

    def __post_init__(self) -> None:
        if self.scalelong is not None:
            self.scaling()
        if self.scalelong != "cs":
            refuse_idle(self, ("kappa", "scalelong_index"), "--scalelong cs")
        if self.scalelong != "ls":
            refuse_idle(self, ("scalelong_init_gate",), "--scalelong ls")
        if self.stability_steps < 0:
            raise ValueError(f"--stability_steps is {self.stability_steps}; it must be at least 0.")

    def scaling(self) -> SkipScaling:
        return SkipScaling(
            self.scalelong or "none", self.kappa, self.scalelong_index, init_gate=self.scalelong_init_gate
        )

    def scaled(self, unet: Any) -> Any:
        """`unet` as it is, or with `--scalelong` a scaled model with its weights.

        Raises:
            ValueError: a model that is scaled already, or levels asked of a U-ViT, which has none.
        """
        if self.scalelong is None:
            return unet
        options = {
            "skip_scaling": self.scalelong,
            "skip_kappa": self.kappa,
            "skip_init_gate": self.scalelong_init_gate,
        }
        if isinstance(unet, UViTModel):
            if self.scalelong_index != "skip":
                raise ValueError(
                    f"--scalelong_index {self.scalelong_index} is for UNets: a U-ViT has no levels."
                )
            return _scaled_uvit(unet, options)
        kinds = (ScaleLongUNet2DModel, ScaleLongUNet2DConditionModel)
        kind = next(kind for kind in kinds if isinstance(unet, kind.STOCK))
        return kind.from_unet(unet, skip_index=self.scalelong_index, **options)

    def join(self, task: Task, output_dir: str) -> None:
        """Has the task keep to this scaling when it is resumed, and measure its stability where
        `--stability_steps` says so.
        """
        if self.scalelong is not None:
            task.settings = functools.partial(self._settings, task.settings)  # type: ignore[method-assign]
        if self.stability_steps:
            StabilityMonitor(Path(output_dir) / "stability", self.stability_steps).watch(task)

    def _settings(self, others: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return {**others(), "scalelong": asdict(self.scaling())}


def _scaled_uvit(model: UViTModel, options: dict[str, Any]) -> UViTModel:
    if model.config.skip_scaling != "none":
        raise ValueError(f"This UViTModel has skip scaling already: {model.config.skip_scaling}.")
    scaled = UViTModel.from_config({**model.config, **options})
    scaled.load_state_dict({**scaled.state_dict(), **model.state_dict()})
    become_like(scaled, model)
    return scaled
