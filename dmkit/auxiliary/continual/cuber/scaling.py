"""A network seen through the scale matrices of a task: W̃ = W + Σ_j W B_j (Q_j - I) B_j'  (equation 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....training.subspaces import Layer, matrix, parts


class ScaledNetwork(nn.Module):
    """Calls a network with scaled weights, which are computed anew in every call; its own stay as they are.

    Args:
        model: the network.
        layers: some of its layers by name.
        bases: by layer and old task, B_j (d, r).
        scales: by layer and old task, Q_j (r, r).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        bases: Mapping[str, Mapping[int, Tensor]],
        scales: Mapping[str, Mapping[int, Tensor]],
    ):
        super().__init__()
        self.model, self._layers, self._bases, self._scales = model, dict(layers), bases, scales

    def weights(self) -> dict[str, Tensor]:
        """The scaled weights and biases by the names of the model's parameters."""
        found = {}
        for name, scales in self._scales.items():
            if not scales:
                continue
            layer = self._layers[name]
            raw = matrix(layer)
            scaled = raw
            for old, scale in scales.items():
                basis = self._bases[name][old].to(raw)
                # Directions that two old tasks share are scaled by both, as the formula says.
                scaled = scaled + ((raw @ basis) @ (scale.to(raw) - torch.eye(len(scale)).to(raw))) @ basis.T
            weight, bias = parts(layer, scaled)
            found[f"{name}.weight"] = weight
            if bias is not None:
                found[f"{name}.bias"] = bias
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights(), args, kwargs)
