"""Orthogonal-gradient update (Mao et al. 2024, arXiv 2402.00348): of two losses that pull a network at
neighbouring inputs, the second keeps only what does not touch the first.

    G = F + (B - c F) + the rest,    c = <F, B> / max(<F, F>, ε)

F is the gradient of the forward loss, B of the backward loss. Other than PCGrad, the projection is made
whether the two are in conflict or not. <B - c F, F> = 0 holds for the gradient: Adam's scaling of it does not
keep the angle.

Under several processes c is that of the mean gradients: they are averaged first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .gram import GramRule

EPSILON = 1e-10


class OrthogonalProjection(GramRule):
    """Projects the gradient of one named loss onto the plane normal to that of another.

    A step whose losses do not have both names is that of the plain sum. All parameters of the optimiser are
    one vector, with one c.

    Args:
        forward: the loss whose gradient is kept.
        backward: the loss whose gradient is projected.

    Attributes:
        coefficient: c of the last step; NaN before, and where there was nothing to project.
        cosine: of the angle between F and B; likewise.
    """

    def __init__(self, forward: str = "forward", backward: str = "backward"):
        if forward == backward:
            raise ValueError(f"The forward and the backward loss are two, not both {forward!r}.")
        super().__init__()
        self.forward, self.backward = forward, backward
        self.coefficient = self.cosine = float("nan")

    def settings(self) -> dict[str, Any]:
        return {"rule": type(self).__name__, "forward": self.forward, "backward": self.backward}

    def weigh(self, inner: np.ndarray, generator: torch.Generator) -> np.ndarray:
        weights, names = np.ones(len(inner)), list(self._gradients)
        self.coefficient = self.cosine = float("nan")
        if self.forward in names and self.backward in names:
            f, b = names.index(self.forward), names.index(self.backward)
            self.coefficient = float(inner[f, b] / max(inner[f, f], EPSILON))
            if (length := np.sqrt(inner[f, f] * inner[b, b])) > 0:
                self.cosine = float(inner[f, b] / length)
            weights[f] = 1 - self.coefficient
        return weights
