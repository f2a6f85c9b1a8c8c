"""The long skips of Diffusers' networks: where they are, and scaling them by hooks.

Diffusers' UNets collect (conv_in's output, then per down block: each resnet's output, the downsampler's) and
hand each up block the last `len(resnets)` of what is left, as a tuple that its resnets consume from the end.
So entry j (from 0) of up block b's tuple is skip i = start_b + j + 1, start_b = n - Σ_{b' ≤ b} len(resnets).
A forward pre-hook on each up block scales the tuple; nothing of the network is copied.

A transformer with long skips (`HunyuanDiT2DModel`) hands one tensor of tokens, `skip`, to each block that
has a `skip_linear`, the innermost first; a pre-hook on each such block scales it. The layer norm there is
over [h ; x_i] together, so the coefficients' ratios last.

What is added to the skips on their way (a ControlNet's residuals) is scaled with them. FreeU works
inside the up blocks: after this. The image pyramid of `SkipUpBlock2D` is no long skip and stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_blocks import KCrossAttnUpBlock2D, KUpBlock2D
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import atomic_file, load_json, load_tensors, save_json
from ..errors import FileFormatError
from .scaling import LongSkipScaler, SkipScaling

FORMAT = 1
# Under a group norm a smaller coefficient is a matter of the norm's ε, no longer of the network.
SMALLEST_COEFFICIENT = 1e-2


@dataclass(frozen=True)
class LongSkip:
    """One long skip of a network.

    Attributes:
        features: channels (or tokens) of its tensor x_i.
        level: level of the decoder block that takes it, from 0 at the outermost.
        join: the module that takes it; its output is h_{i-1}.
    """

    features: int
    level: int
    join: nn.Module


def long_skips(model: nn.Module) -> list[LongSkip]:
    """The long skips of a network with `conv_in`, `down_blocks` and `up_blocks`, of a transformer whose
    blocks have a `skip_linear`, or of one that lists them in a method `long_skips`; the outermost first.

    Raises:
        ValueError: a network without such skips, or of blocks that use them in another way.
    """
    if hasattr(model, "long_skips"):
        return model.long_skips()  # type: ignore[operator]
    if joins := [block for block in getattr(model, "blocks", ()) if _takes_tokens(block)]:
        tokens = (model.config.sample_size // model.config.patch_size) ** 2  # type: ignore[union-attr]
        return [LongSkip(tokens, level, block) for level, block in enumerate(reversed(joins))]
    missing = [name for name in ("conv_in", "down_blocks", "up_blocks") if not hasattr(model, name)]
    if missing:
        raise ValueError(f"{type(model).__name__} has no {', '.join(missing)}: no long skips to scale.")
    if any(isinstance(block, KUpBlock2D | KCrossAttnUpBlock2D) for block in model.up_blocks):  # type: ignore[union-attr]
        raise ValueError("K-diffusion blocks use one skip a block in another way; they cannot be scaled.")
    widths = [model.conv_in.out_channels]  # type: ignore[union-attr]
    for block in model.down_blocks:  # type: ignore[union-attr]
        widths += [resnet.out_channels for resnet in block.resnets]
        if block.downsamplers is not None:
            widths.append(widths[-1])
    takers = [
        (level, resnet)
        for level, block in enumerate(reversed(model.up_blocks))  # type: ignore[arg-type]
        for resnet in reversed(block.resnets)
    ]
    if len(takers) != len(widths):
        raise ValueError(
            f"{type(model).__name__} makes {len(widths)} skips and takes {len(takers)}; no pairs."
        )
    return [LongSkip(width, level, resnet) for width, (level, resnet) in zip(widths, takers, strict=True)]


def _takes_tokens(block: nn.Module) -> bool:
    return getattr(block, "skip_linear", None) is not None


def attach(model: nn.Module, scaling: SkipScaling) -> None:
    """Gives `model` a `skip_scaler` and hooks it to the blocks that take the skips.

    Raises:
        ValueError: it has one already, or no long skips.
    """
    if hasattr(model, "skip_scaler"):
        raise ValueError(f"This {type(model).__name__} has skip scaling already; remove that first.")
    skips = long_skips(model)
    scaler = LongSkipScaler([skip.features for skip in skips], [skip.level for skip in skips], scaling)
    warn_of_tiny_coefficients(scaler)
    parameter = next(model.parameters())
    model.skip_scaler = scaler.to(parameter.device, parameter.dtype)
    # Partials, not closures: `copy.deepcopy` gives the copy's hook the copy's scaler.
    if _takes_tokens(skips[0].join):
        for i, skip in enumerate(skips, start=1):
            skip.join.register_forward_pre_hook(partial(_scale_tokens, scaler, i), with_kwargs=True)
        return
    start = len(skips)
    for block in model.up_blocks:  # type: ignore[union-attr]
        start -= len(block.resnets)
        block.register_forward_pre_hook(partial(_scale_skips, scaler, start), with_kwargs=True)


def warn_of_tiny_coefficients(scaler: LongSkipScaler) -> None:
    """Warns where constant scaling is so strong that the ε of group norms takes over."""
    if scaler.scaling.mode == "cs" and (smallest := scaler.coefficient(len(scaler))) < SMALLEST_COEFFICIENT:
        warnings.warn(
            f"The innermost of {len(scaler)} skips is scaled by {smallest:.1e}, where group norms collapse. "
            "Take a larger kappa (0.9 per skip) or index='level'.",
            stacklevel=2,
        )


def _scale_skips(
    scaler: LongSkipScaler, start: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an up block with scaled skips; `UNet2DModel` passes them by position,
    `UNet2DConditionModel` by keyword.
    """

    def scaled(skips: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(scaler(start + j + 1, x) for j, x in enumerate(skips))

    if "res_hidden_states_tuple" in kwargs:
        name = "res_hidden_states_tuple"
        return args, {**kwargs, name: scaled(kwargs[name])}
    return (args[0], scaled(args[1]), *args[2:]), kwargs


def _scale_tokens(
    scaler: LongSkipScaler, i: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a transformer block with its skip scaled."""
    return args, {**kwargs, "skip": scaler(i, kwargs["skip"])}


def _hooks(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    for block in model.modules():
        for key, hook in list(block._forward_pre_hooks.items()):
            if isinstance(hook, partial) and hook.func in (_scale_skips, _scale_tokens):
                yield block, key


def apply_skip_scaling(model: nn.Module, scaling: SkipScaling) -> None:
    """Scales the long skips of a Diffusers UNet, HunyuanDiT or the like, until `remove_skip_scaling`.

    For a model to save and load, `ScaleLongUNet2DModel`, `ScaleLongUNet2DConditionModel` and
    `ScaleLongHunyuanDiT2DModel` are the classes: they keep the scaling in their config. Call this before
    `accelerator.prepare` and `torch.compile`.

    Args:
        model: a network with `conv_in`, `down_blocks` and `up_blocks`, or a transformer whose blocks have a
            `skip_linear`; changed in place: its submodule `skip_scaler` holds the gates of mode `ls`.
        scaling: how.

    Raises:
        ValueError: it is scaled already, has no long skips, or consists of K-diffusion blocks.
    """
    attach(model, scaling)


def remove_skip_scaling(model: nn.Module) -> None:
    """Takes back `apply_skip_scaling`; the model computes what it did before, to the bit.

    Raises:
        ValueError: the model has no skip scaling.
    """
    if not hasattr(model, "skip_scaler"):
        raise ValueError(f"This {type(model).__name__} has no skip scaling to remove.")
    for block, key in _hooks(model):
        del block._forward_pre_hooks[key]
        block._forward_pre_hooks_with_kwargs.pop(key, None)
    del model.skip_scaler


def save_skip_scaling(model: nn.Module, folder: str | Path) -> None:
    """Writes the scaling of a model into `skip_scaling.json` and, in mode `ls`, `skip_scaler.safetensors`.

    Raises:
        ValueError: the model has no skip scaling.
    """
    if not hasattr(model, "skip_scaler"):
        raise ValueError(f"This {type(model).__name__} has no skip scaling to save.")
    scaler: LongSkipScaler = model.skip_scaler  # type: ignore[assignment]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if state := {name: value.contiguous() for name, value in scaler.state_dict().items()}:
        with atomic_file(folder / "skip_scaler.safetensors") as draft:
            save_file(state, str(draft))
    save_json(
        folder / "skip_scaling.json",
        {"format": FORMAT, "features": list(scaler.features), "scaling": asdict(scaler.scaling)},
    )


def load_skip_scaling(model: nn.Module, folder: str | Path) -> None:
    """Applies to `model` what `save_skip_scaling` wrote.

    Raises:
        FileFormatError: files that are missing, damaged, of another format or of a network with other skips.
        ValueError: as `apply_skip_scaling`.
    """
    folder = Path(folder)
    content = load_json(folder / "skip_scaling.json")
    if content.get("format") != FORMAT:
        raise FileFormatError(
            f"{folder} has format {content.get('format')} of skip scaling; this version reads {FORMAT}."
        )
    features = [skip.features for skip in long_skips(model)]
    if content.get("features") != features:
        raise FileFormatError(
            f"{folder} was saved from skips of {content.get('features')} features; "
            f"this model's have {features}."
        )
    try:
        scaling = SkipScaling(**content["scaling"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{folder / 'skip_scaling.json'} cannot be read: {error}") from error
    state = load_tensors(folder / "skip_scaler.safetensors") if scaling.mode == "ls" else {}
    attach(model, scaling)
    try:
        model.skip_scaler.load_state_dict(state)  # type: ignore[union-attr]
    except RuntimeError as error:
        remove_skip_scaling(model)
        raise FileFormatError(f"{folder / 'skip_scaler.safetensors'} does not fit: {error}") from error
