"""Folding constant scaling into the weights, so that a plain model computes the same without hooks.

κ_i x_i enters a linear map, W [h ; κ_i x_i] = [W_h, κ_i W_x] [h ; x_i]: in a U-ViT, scaling those columns is
exact up to rounding. A UNet's resnet takes its input twice. For the 1x1 shortcut the same holds. The group
norm does not see a constant factor on a whole group, except that its ε acts as ε/κ_i²; a group that holds
channels of both h and x_i does see it, and no weights of the plain layer make up for that. So a UNet folds
only where no group straddles the boundary, and up to that ε.
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from diffusers.models.resnet import ResnetBlock2D

from .scaling import MODEL_OPTIONS, LongSkipScaler
from .skips import LongSkip, long_skips
from .unet import SkipScaledUNet, become_like
from .uvit import UViTModel


@torch.no_grad()
def fold_skip_scaling(model: ModelMixin, *, max_epsilon: float = 1e-4) -> ModelMixin:
    """A plain copy of a model, with constant scaling in its weights.

    Args:
        model: a `UViTModel`, `ScaleLongUNet2DModel` or `ScaleLongUNet2DConditionModel` with a constant mode.
        max_epsilon: largest ε/κ_i² that a group norm of a UNet may be left with, in units of the features'
            variance: the relative error that folding makes there is about half of it.

    Returns:
        A `UViTModel` in mode `none`, or a model of the UNet's parent class.

    Raises:
        ValueError: mode `ls`, whose gates depend on the input; a UNet with a group norm that mixes skip and
            backbone channels, or with ε/κ_i² above `max_epsilon`.
        TypeError: a model of another class.
    """
    if isinstance(model, UViTModel):
        return _fold_uvit(model)
    if not isinstance(model, SkipScaledUNet):
        raise TypeError(f"A {type(model).__name__} has no scaled skips to fold.")
    scaler: LongSkipScaler = model.skip_scaler
    skips = long_skips(model)  # type: ignore[arg-type]
    for i, skip in enumerate(skips, start=1):
        _check_foldable(i, skip, scaler.coefficient(i), max_epsilon)
    config = {name: value for name, value in model.config.items() if name not in MODEL_OPTIONS}
    plain = model.STOCK.from_config(config)
    plain.load_state_dict(model.state_dict())  # type: ignore[attr-defined]
    become_like(plain, model)
    for i, skip in enumerate(long_skips(plain), start=1):
        if (coefficient := scaler.coefficient(i)) != 1:
            skip.join.conv_shortcut.weight[:, -skip.features :] *= coefficient  # type: ignore
    return plain


def _fold_uvit(model: UViTModel) -> UViTModel:
    coefficients = [model.skip_scaler.coefficient(i) for i in range(1, len(model.skip_scaler) + 1)]
    plain = UViTModel.from_config({**model.config, "skip_scaling": "none"})
    plain.load_state_dict(model.state_dict())
    become_like(plain, model)
    for join, coefficient in zip(plain.skip_joins, reversed(coefficients), strict=True):
        join.weight[:, join.out_features :] *= coefficient
    return plain


def _check_foldable(i: int, skip: LongSkip, coefficient: float, max_epsilon: float) -> None:
    if coefficient == 1:
        return
    resnet = skip.join
    if not isinstance(resnet, ResnetBlock2D) or resnet.conv_shortcut is None:
        raise ValueError(f"Skip {i} enters a {type(resnet).__name__} without a shortcut convolution.")
    group = resnet.in_channels // resnet.norm1.num_groups
    if skip.features % group:
        raise ValueError(
            f"Skip {i} cannot be folded exactly: a group norm over {resnet.in_channels} channels in groups "
            f"of {group} mixes its {skip.features} channels with the backbone's."
        )
    if (epsilon := resnet.norm1.eps / coefficient**2) > max_epsilon:
        raise ValueError(
            f"Skip {i} cannot be folded exactly: with its coefficient {coefficient:.3g} the group norm's ε "
            f"acts as {epsilon:.1e}, more than max_epsilon={max_epsilon:.1e}."
        )
