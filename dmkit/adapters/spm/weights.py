"""An SPM outside a model, the way into one and out of one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import FileFormatError
from .layers import adapter_layers, component_of, inject, same_gradients, target_layers

KOHYA_PREFIX = "lora_unet_"


@dataclass(frozen=True)
class SPMMetadata:
    """Where an adapter comes from.

    Args:
        targets: the erased concepts; facilitated transport compares prompts with them. Empty if unknown.
        surrogate: what was put in their place; "" for nothing in particular.
        base_model: name of the model it was trained on, if known.
        eta: η, the erasing guidance; likewise None if unknown, as all that follow.
        anchoring: λ, the weight of latent anchoring.
        iterations: training steps.
        seed: seed of the training.
        architecture: `fingerprint` of the denoiser.
    """

    targets: tuple[str, ...] = ()
    surrogate: str = ""
    base_model: str | None = None
    eta: float | None = None
    anchoring: float | None = None
    iterations: int | None = None
    seed: int | None = None
    architecture: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not all(isinstance(target, str) for target in self.targets):
            raise TypeError(f"targets should be a sequence of strings, not {self.targets!r}.")
        if not all(target.strip() for target in self.targets):
            raise ValueError(f"A target is empty: {self.targets!r}.")
        object.__setattr__(self, "targets", tuple(self.targets))


class SPMLayer(NamedTuple):
    """The adapter of one layer, equation (1) in `layers`.

    Attributes:
        down: D, (r, n) or (r, n, kernel height, kernel width).
        up: U, (m, r) or (m, r, 1, 1).
        alpha: α, a tensor without dimensions.
    """

    down: Tensor
    up: Tensor
    alpha: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """α / r."""
        return float(self.alpha) / self.rank


@dataclass(frozen=True)
class SPMWeights:
    """An adapter outside a model.

    Args:
        layers: by module name, with dots, or with underscores for dots as in files of the kohya layout.
        metadata: where it comes from.
        component: `unet` or `transformer`.
        header: the file's other header entries, which are written back.
    """

    layers: dict[str, SPMLayer]
    metadata: SPMMetadata = SPMMetadata()
    component: str = "unet"
    header: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return next(iter(self.layers.values())).rank

    @property
    def alpha(self) -> float:
        """α of most layers."""
        return Counter(float(layer.alpha) for layer in self.layers.values()).most_common(1)[0][0]


def flat(name: str) -> str:
    """A module's name as kohya keys have it. More than one module may share it."""
    return name.replace(".", "_")


def fingerprint(model: nn.Module) -> str:
    """A hash of the names and shapes of a denoiser's target layers: equal for models that share adapters."""
    shapes = [f"{name}{tuple(layer.weight.shape)}" for name, layer in target_layers(model).items()]
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]


def key_of(name: str, part: str, layout: str, component: str = "unet") -> str:
    """A tensor's key in a file; `part` is `down`, `up` or `alpha`."""
    if layout == "kohya":
        return f"{KOHYA_PREFIX}{flat(name)}.{'alpha' if part == 'alpha' else f'lora_{part}.weight'}"
    return f"{component}.{name}.{'lora_A' if part == 'down' else 'lora_B'}.weight"


def resolve(weights: SPMWeights, model: nn.Module) -> SPMWeights:
    """The same adapter with the module names of a model, checked against its layers.

    Raises:
        FileFormatError: a layer that the model does not have, one of another shape, or weights beyond the
            range of the model's type; the message names the first.
        ValueError: as `target_layers`.
    """
    targets = target_layers(model)
    by_flat: dict[str, list[str]] = {}
    for name in targets:
        by_flat.setdefault(flat(name), []).append(name)
    layers = {}
    for given, layer in weights.layers.items():
        layout = "peft" if "." in given else "kohya"
        found = [given] if given in targets else by_flat.get(given, [])
        if len(found) != 1:
            trained = weights.metadata.base_model
            raise FileFormatError(
                f"{key_of(given, 'down', layout, weights.component)} belongs to no layer of this "
                f"{type(model).__name__}: the adapter is for another architecture"
                + (f" (trained on {trained})." if trained else ".")
            )
        (name,) = found
        for part, tensor, expected in zip(
            ("down", "up"), layer, shapes(targets[name], layer.rank), strict=False
        ):
            if tuple(tensor.shape) != expected:
                raise FileFormatError(
                    f"{key_of(given, part, layout, weights.component)} has shape {tuple(tensor.shape)}; this "
                    f"model's {name} needs {expected}."
                )
            dtype = targets[name].weight.dtype
            if tensor.abs().max() > torch.finfo(dtype).max:
                raise FileFormatError(
                    f"{key_of(given, part, layout, weights.component)} holds values that are infinite in "
                    f"{dtype}, this model's type."
                )
        layers[name] = layer
    return replace(weights, layers=layers, component=component_of(model))


def shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of D and U for a `Linear` or `Conv2d`."""
    out_features, in_features, *kernel = layer.weight.shape
    return (rank, in_features, *kernel), (out_features, rank, *(1 for _ in kernel))


def from_model(model: nn.Module, adapter_name: str, metadata: SPMMetadata) -> SPMWeights:
    """Reads an adapter out of a model, as copies on the CPU in the model's type.

    Raises:
        ValueError: the model has no adapter of this name.
    """
    layers = {}
    for name, layer in adapter_layers(model, adapter_name).items():
        down, up = (part[adapter_name].weight.detach().cpu().clone() for part in (layer.lora_A, layer.lora_B))
        layers[name] = SPMLayer(down, up, torch.tensor(float(layer.lora_alpha[adapter_name]), dtype=up.dtype))
    return SPMWeights(layers, replace(metadata, architecture=fingerprint(model)), component_of(model))


@torch.no_grad()
def into_model(model: nn.Module, adapter_name: str, weights: SPMWeights) -> None:
    """Adds an adapter to a model with these weights, active beside the others and frozen.

    Raises:
        FileFormatError: it does not fit; the model is as it was.
        ValueError: as `inject`.
    """
    weights = resolve(weights, model)
    unused = torch.Generator()
    with same_gradients(model):
        inject(
            model,
            adapter_name,
            rank=weights.rank,
            alpha=weights.alpha,
            layers=weights.layers,
            generator=unused,
        )
    for name, layer in adapter_layers(model, adapter_name).items():
        down, up, alpha = weights.layers[name]
        layer.lora_A[adapter_name].weight.requires_grad_(False).copy_(down)
        layer.lora_B[adapter_name].weight.requires_grad_(False).copy_(up)
        layer.lora_alpha[adapter_name] = float(alpha)
        layer.set_scale(adapter_name, 1.0)
