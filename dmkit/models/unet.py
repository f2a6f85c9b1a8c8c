"""Diffusers' UNets, and its transformer with long skips, with ScaleLong's scaling, as classes that save, load
and train like their parents.

Each is its parent plus hooks (`skips`); the equations are in `scaling`. Weights have the parent's names, so
the parent loads them, but then computes something else: it warns that it ignores the `skip_…` keys.

`GroupNorm` at the entry of each resnet undoes constant scaling for groups that hold skip channels only: κ_i
then acts through the 1x1 shortcut alone. Expect less from `cs` here than in a U-ViT. For kappa, take about
0.9 with `skip_index="skip"` or 0.7 with `skip_index="level"`.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

# Diffusers loads a saved component only from a module that has the name ModelMixin.
from diffusers import HunyuanDiT2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel
from torch import nn
from typing_extensions import Self

from .._options import init_with_options
from .scaling import MODEL_OPTIONS, SkipScaledModel, SkipScaling
from .skips import attach


class SkipScaledUNet(SkipScaledModel):
    """What these models add to their parents.

    Attributes:
        STOCK: the parent class at Diffusers.
    """

    STOCK: ClassVar[Any]

    def _check_options(self) -> None:
        attach(self, SkipScaling.from_model_config(self.config))  # type: ignore[arg-type]

    @classmethod
    def from_unet(cls, unet: ModelMixin, **options: Any) -> Self:
        """A scaled copy of `unet`, with its weights, device and dtype.

        Args:
            unet: an instance of the parent class.
            options: `skip_scaling` and the like, as in the class's constructor.

        Raises:
            ValueError: `unet` has skip scaling already, or an option is out of range.
            TypeError: `unet` is of another class, or an unknown option.

        Warns:
            UserWarning: the weights come from a checkpoint that was trained without scaling, and this scaling
                changes what they compute.
        """
        if not isinstance(unet, cls.STOCK):
            raise TypeError(f"{cls.__name__} takes a {cls.STOCK.__name__}, not a {type(unet).__name__}.")
        if hasattr(unet, "skip_scaler"):
            raise ValueError(f"This {type(unet).__name__} has skip scaling already.")
        if unknown := sorted(options.keys() - MODEL_OPTIONS.keys()):
            raise TypeError(
                f"Unknown options {', '.join(unknown)} of skip scaling. Known: {', '.join(MODEL_OPTIONS)}."
            )
        scaled = cls.from_config(unet.config, **options)  # type: ignore[attr-defined]
        scaled.load_state_dict({**scaled.state_dict(), **unet.state_dict()})
        become_like(scaled, unet)
        if unet.config.get("_name_or_path") and not _nearly_none(scaled.skip_scaler.scaling):
            warnings.warn(
                "The weights were trained without skip scaling; switching it on changes what they compute. "
                "For fine-tuning, lower kappa from 1 over the first steps (`set_skip_kappa`), or start the "
                "gates near 1 (`skip_init_gate=0.98`).",
                stacklevel=2,
            )
        return scaled


def become_like(model: Any, other: Any) -> None:
    """Gives `model` the device, dtype and mode of `other`."""
    # Diffusers' own `to` warns of modules to keep in float32 even where there are none.
    nn.Module.to(model, other.device, other.dtype)
    model.train(other.training)


def _nearly_none(scaling: SkipScaling) -> bool:
    if scaling.mode == "ls":
        return scaling.init_gate >= 0.95
    return scaling.mode == "none" or (scaling.mode == "cs" and scaling.kappa == 1)


class ScaleLongUNet2DModel(SkipScaledUNet, UNet2DModel):
    """`UNet2DModel` with scaled long skips (arXiv 2310.13545).

    Args:
        skip_scaling: `cs` (default), `ls`, `inv_sqrt2` or `none`.
        skip_kappa: κ of `cs`, in (0, 1].
        skip_index: `skip` or `level`: what the exponent of `cs` counts.
        skip_reduction, skip_shared, skip_init_gate: the gates of `ls`; see `dmkit.models.SkipScaling`.

    The other arguments are `UNet2DModel`'s; the skip options are keyword-only.

    Raises:
        ValueError: an option out of range, or K-diffusion blocks.
        TypeError: an option that should be a number.

    Warns:
        UserWarning: `cs` that scales the innermost skip below 0.01.
    """

    STOCK = UNet2DModel
    __init__ = init_with_options(UNet2DModel, MODEL_OPTIONS)


class ScaleLongUNet2DConditionModel(SkipScaledUNet, UNet2DConditionModel):
    """`UNet2DConditionModel` with scaled long skips; options, errors, warnings as `ScaleLongUNet2DModel`."""

    STOCK = UNet2DConditionModel
    __init__ = init_with_options(UNet2DConditionModel, MODEL_OPTIONS)


class ScaleLongHunyuanDiT2DModel(SkipScaledUNet, HunyuanDiT2DModel):
    """`HunyuanDiT2DModel`, a U-ViT-like transformer, with scaled long skips; options, errors and warnings as
    `ScaleLongUNet2DModel`. Gates of `ls` are per token: they take images of `sample_size` only.
    """

    STOCK = HunyuanDiT2DModel
    __init__ = init_with_options(HunyuanDiT2DModel, MODEL_OPTIONS)
