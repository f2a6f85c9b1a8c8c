"""The BDIA step on any family of levels, written once for samplers and inverses, VP, flow and VE alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import recurrence
from .recurrence import Level, image_at
from .trajectory import Call, Trajectory


class BDIAWalker(Trajectory):
    """A `Trajectory` that moves by the BDIA recurrence.

    Subclasses give `_predict(model_output, z, i)`: the (x0_i, e_i) that the network's answer at the state z
    of level i stands for. Class attribute `_direction`: -1 walks towards the image (sampling), +1 towards the
    noise (inversion).
    """

    is_invertible = True
    _direction = -1
    _gammas: list[float]

    _predict: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def _calls(self, num_levels: int, resumed: bool) -> list[Call]:
        if self._direction < 0:  # t_N, …, t_1; the DDIM bootstrap at t_N is skipped when z_{N-1} is known
            return [(i, i) for i in range(num_levels - resumed, 0, -1)]
        # t_1, t_1, t_2, …, t_{N-1}: level 0 has no network time, its bootstrap asks the network at t_1
        return [(i, max(i, 1)) for i in range(resumed, num_levels)]

    def _prepare(self, x: torch.Tensor) -> torch.Tensor:
        return recurrence.quantise(x) if self._bitwise else x

    @property
    def _bitwise(self) -> bool:
        return self.config.get("reversible") == "bitwise"

    def _lay_out(self, levels: list[Level]) -> None:
        super()._lay_out(levels)
        assert self._levels is not None
        self._gammas = recurrence.gammas_of(
            self.config.get("solver", "bdia"), self.config.gamma, self._levels
        )
        if self._direction > 0:
            recurrence.check_invertible(self._gammas, self.config.max_amplification)

    def _walk(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **reading: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: (the next sample, the data prediction x0), both in the sample's dtype."""
        z, i = self._enter(sample, timestep)
        x0, e = self._predict(model_output.to(z.dtype), z, i, **reading)
        assert self._levels is not None
        if self._partner is None:
            # Bootstrap: plain DDIM. It only chooses the trajectory and is never undone.
            z_next = self._prepare(image_at(x0, e, self._levels[i + self._direction]))
        else:
            F_next, F_prev = (image_at(x0, e, self._levels[j]) for j in (i - 1, i + 1))
            z_next = self._recurrence(F_next, F_prev, self._partner, self._gammas[i])
        return self._leave(z_next, partner=z, like=sample), x0.to(sample.dtype)

    @property
    def _recurrence(self) -> Any:
        if self._direction < 0:
            return recurrence.two_step_bitwise if self._bitwise else recurrence.two_step
        return recurrence.two_step_bitwise_inverse if self._bitwise else recurrence.two_step_inverse
