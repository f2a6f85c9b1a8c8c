"""ScaleLong's coefficients of long skip connections, and the module that applies them.

Huang, Zhou, Yan, Lin, *ScaleLong: Towards More Stable Training of Diffusion Model via Scaling Network Long
Skip Connection*, NeurIPS 2023, arXiv 2310.13545. A denoiser with N long skips is

    x_i = a_i(x_{i-1}),   h_N = f_N(x_N),   h_{i-1} = b_i(κ_i x_i, h_i)   for i = N … 1              (1)

so skip 1 is the outermost, nearest to input and output. Only the tensor on its way into b_i is scaled:

    none         κ_i = 1
    inv_sqrt2    κ_i = 2^(-1/2)                                                                     (2)
    cs           κ_i = κ^(i-1)                                    constant scaling                  (3)
    ls           κ_i = σ(W2 ReLU(W1 GAP(x_i) + b1) + b2)          learnable scaling                 (4)

With `index="level"` the exponent of (3) is the level of the up block, counted from the outermost, and is
shared by its skips. The gates of (4) are per channel for feature maps and per token for token sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown_name

MODES = ("none", "inv_sqrt2", "cs", "ls")
INDICES = ("skip", "level")


@dataclass(frozen=True)
class SkipScaling:
    """How long skips are scaled.

    Args:
        mode: `none`, `inv_sqrt2`, `cs` or `ls`; see the module's docstring.
        kappa: κ of `cs`, in (0, 1].
        index: `skip`: exponent i - 1 for skip i; `level`: the level of its up block.
        reduction: how many times the hidden layer of a gate is narrower than its input (at least one unit).
        shared: one gate for all skips of the same width, as in the paper; else one for each skip.
        init_gate: where the gates start, in (0, 1), up to PyTorch's random initial weights. 0.5 as in the
            released code; 0.98 leaves a trained model nearly as it is.

    Raises:
        TypeError: a number that is none.
        ValueError: an unknown mode or index, or a number out of range.
    """

    mode: str = "cs"
    kappa: float = 0.7
    index: str = "skip"
    reduction: int = 16
    shared: bool = True
    init_gate: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode of skip scaling", self.mode, MODES)
        if self.index not in INDICES:
            raise unknown_name("index of skip scaling", self.index, INDICES)
        for name in ("kappa", "reduction", "init_gate"):
            if not isinstance(value := getattr(self, name), Real):
                raise TypeError(f"{name} should be a number, not {value!r}.")
        if not 0 < self.kappa <= 1:
            raise ValueError(f"kappa is {self.kappa}; it must be in (0, 1].")
        if self.reduction < 1 or self.reduction != int(self.reduction):
            raise ValueError(f"reduction is {self.reduction}; it must be a whole number of at least 1.")
        if not 0 < self.init_gate < 1:
            raise ValueError(f"init_gate is {self.init_gate}; it must be between 0 and 1.")

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> SkipScaling:
        """Reads the options that a model's config has under the names of `MODEL_OPTIONS`."""
        return cls(**{own: config[name] for own, name in _MODEL_NAMES.items() if name in config})


_MODEL_NAMES = {f.name: "skip_scaling" if f.name == "mode" else f"skip_{f.name}" for f in fields(SkipScaling)}
# Names and defaults of the options in the configs of models.
MODEL_OPTIONS = {_MODEL_NAMES[f.name]: f.default for f in fields(SkipScaling)}


class Gate(nn.Module):
    """σ(W2 ReLU(W1 GAP(x) + b1) + b2), equation (4); computed in float32 at least.

    Args:
        features: size of dimension 1 of what is gated: channels of maps, tokens of sequences.
        reduction: hidden units are `features // reduction`, at least one.
        init_gate: the gate's initial centre.
    """

    def __init__(self, features: int, reduction: int, init_gate: float):
        super().__init__()
        hidden = max(1, features // reduction)
        self.squeeze = nn.Linear(features, hidden)
        self.excite = nn.Linear(hidden, features)
        with torch.no_grad():
            self.excite.bias += math.log(init_gate / (1 - init_gate))

    def forward(self, x: Tensor) -> Tensor:
        """Gates in (0, 1) of shape (B, features, 1, …) for `x` of shape (B, features, …), in its dtype.

        Raises:
            ValueError: another size of dimension 1: a gate of tokens fixes the number of tokens.
        """
        features = self.squeeze.in_features
        if x.shape[1] != features:
            raise ValueError(
                f"The gates were made for {features} channels or tokens, got {x.shape[1]}; a model that "
                "gates tokens takes one image size only."
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            pooled = x.mean(dim=tuple(range(2, x.ndim)), dtype=wide)
            hidden = F.relu(F.linear(pooled, self.squeeze.weight.to(wide), self.squeeze.bias.to(wide)))
            gate = torch.sigmoid(F.linear(hidden, self.excite.weight.to(wide), self.excite.bias.to(wide)))
        return gate.to(x.dtype).view(*gate.shape, *([1] * (x.ndim - 2)))


class LongSkipScaler(nn.Module):
    """Scales the tensors of long skips. Has parameters only in mode `ls`.

    Args:
        features: size of dimension 1 of each skip's tensor, the outermost skip first.
        levels: level of each skip for `index="level"`, from 0 at the outermost; by default skip i has level
            i - 1.
        scaling: how.

    Attributes:
        enabled: False lets every tensor through as it is.
    """

    def __init__(self, features: Sequence[int], levels: Sequence[int] | None, scaling: SkipScaling):
        super().__init__()
        self.scaling = scaling
        self.enabled = True
        self.features = tuple(features)
        self.levels = tuple(range(len(features)) if levels is None else levels)
        self.gates = nn.ModuleDict()
        if scaling.mode == "ls":
            for i, width in enumerate(self.features, start=1):
                if (key := self._gate_key(i)) not in self.gates:
                    self.gates[key] = Gate(width, int(scaling.reduction), scaling.init_gate)

    def __len__(self) -> int:
        return len(self.features)

    def _gate_key(self, i: int) -> str:
        return str(self.features[i - 1]) if self.scaling.shared else f"skip_{i}"

    def gate(self, i: int) -> Gate:
        """The network that gates skip `i` (from 1, the outermost); mode `ls` only."""
        return self.gates[self._gate_key(i)]  # type: ignore[return-value]

    def coefficient(self, i: int) -> float:
        """κ_i of skip `i` (from 1, the outermost), equations (2) and (3).

        Raises:
            ValueError: mode `ls`, whose gates depend on the input.
        """
        if self.scaling.mode == "ls":
            raise ValueError("The gates of mode 'ls' depend on the input; they are no constant coefficients.")
        if not self.enabled or self.scaling.mode == "none":
            return 1.0
        if self.scaling.mode == "inv_sqrt2":
            return 2**-0.5
        return self.scaling.kappa ** (i - 1 if self.scaling.index == "skip" else self.levels[i - 1])

    def forward(self, i: int, x: Tensor) -> Tensor:
        """κ_i x_i for skip `i` (from 1, the outermost), out of place: the encoder needs x_i as it is."""
        if not self.enabled:
            return x
        if self.scaling.mode == "ls":
            return x * self.gate(i)(x)
        factor = self.coefficient(i)
        return x if factor == 1 else x * factor

    def extra_repr(self) -> str:
        return f"{len(self)} skips, {self.scaling}"


class SkipScaledModel:
    """What the models with a `skip_scaler` share."""

    skip_scaler: LongSkipScaler
    config: Any

    def set_skip_kappa(self, kappa: float) -> None:
        """Sets κ of mode `cs`, in the config too; for a ramp from 1 down in fine-tuning.

        Raises:
            ValueError: kappa outside (0, 1], or another mode than `cs`.
        """
        scaling = self.skip_scaler.scaling
        if scaling.mode != "cs":
            raise ValueError(f"kappa belongs to mode 'cs'; this model's mode is {scaling.mode!r}.")
        self.skip_scaler.scaling = replace(scaling, kappa=kappa)
        unchosen = [name for name in self.config.get("_use_default_values", []) if name != "skip_kappa"]
        self.register_to_config(skip_kappa=kappa, _use_default_values=unchosen)  # type: ignore[attr-defined]

    def disable_skip_scaling(self) -> None:
        """Lets skips through unscaled until `enable_skip_scaling`, to the bit as the parent does."""
        self.skip_scaler.enabled = False

    def enable_skip_scaling(self) -> None:
        """Takes back `disable_skip_scaling`."""
        self.skip_scaler.enabled = True
