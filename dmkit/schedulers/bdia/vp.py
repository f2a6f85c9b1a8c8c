"""Variance-preserving levels and readings: what BDIA-DDIM and EDICT share."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import unknown_name
from .trajectory import Trajectory, check_steps

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class VPTrajectory(Trajectory):
    """Mixin over `DDIMScheduler`: its grid as levels, and (x0, e) from any of its prediction types.

    Levels follow the list of timesteps by position. `DDIMScheduler` finds the next level by subtracting
    num_train_timesteps // num_inference_steps instead, which lands beside its own grid for `linspace` spacing
    (and for `trailing` when the steps do not divide the schedule); elsewhere the two agree.
    """

    alphas_cumprod: torch.Tensor
    final_alpha_cumprod: torch.Tensor
    _threshold_sample: Any

    def _check_prediction_type(self) -> None:
        if self.config.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction_type", str(self.config.prediction_type), PREDICTION_TYPES)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lays out the run and forgets the last one; a start given to `set_start` stays.

        Args:
            num_inference_steps: N >= 2, the levels of the whole grid.
            device: where `timesteps` shall lie.

        Raises:
            ValueError: N < 2, a grid past the model's last timestep, epsilon prediction on a level without
                signal, a start state of another grid, or (an inverse) gamma = 0 or an amplification beyond
                `max_amplification`.
        """
        check_steps(num_inference_steps)
        super().set_timesteps(num_inference_steps, device=device)  # type: ignore[misc]
        top, known = int(self.timesteps.max()), len(self.alphas_cumprod)
        if top >= known:
            raise ValueError(
                f"{num_inference_steps} steps with steps_offset={self.config.steps_offset} reach timestep "
                f"{top}, and the model's last one is {known - 1}: take fewer."
            )
        alpha_bars = [
            float(self.final_alpha_cumprod),
            *self.alphas_cumprod[self.timesteps.flip(0).cpu()].tolist(),
        ]
        if self.config.prediction_type == "epsilon" and min(alpha_bars) == 0:
            raise ValueError(
                "prediction_type='epsilon' cannot start from zero terminal SNR (alphas_cumprod is 0 at the "
                "first timestep, x0 would divide by 0): use a v_prediction model or 'leading' spacing."
            )
        self._lay_out([(alpha_bar**0.5, (1 - alpha_bar) ** 0.5) for alpha_bar in alpha_bars])

    def _predict(
        self, model_output: torch.Tensor, z: torch.Tensor, i: int, rederive_e: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0_i, e_i) at the state z of level i; `rederive_e`: e from the clipped x0.

        Level 0 has no timestep: there the network was asked at t_1, so e is read with t_1's coefficients,
        whatever the prediction type, and x0 = (z_0 - sigma_0 e) / alpha_0.
        """
        assert self._levels is not None
        alpha, sigma = self._levels[max(i, 1)]
        kind = self.config.prediction_type
        if kind == "epsilon":
            x0, e = (z - sigma * model_output) / alpha, model_output
        elif kind == "sample":
            x0, e = model_output, (z - alpha * model_output) / sigma
        else:
            x0, e = alpha * z - sigma * model_output, alpha * model_output + sigma * z
        if i == 0:
            alpha, sigma = self._levels[0]
            return (z - sigma * e) / alpha, e
        if self.config.thresholding:
            x0 = self._threshold_sample(x0)
        elif self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        if rederive_e:
            e = (z - alpha * x0) / sigma
        return x0, e


def refuse_noise(eta: float) -> None:
    """Raises ValueError for eta > 0: added noise cannot be run back."""
    if eta:
        raise ValueError(f"eta must be 0, got {eta}: a reversible trajectory is deterministic.")
