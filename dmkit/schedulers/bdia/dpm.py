"""BDIA on DPM-Solver++(2M): sampling only.

Extension of Zhang, Lewis, Kleijn (ECCV 2024, arXiv 2307.10829), which names the combination without a formula
that could be checked. The 2M step from z_i uses the data prediction m_{i+1} of the level above, a function of
the very state that an inversion would have to find: the forward increment is not explicitly invertible, so
this only samples.

    z_{i-1} = [2M step from z_i] + gamma (z_{i+1} - F_i(i+1))

F_i(i+1) is the solver's own image of z_i at the level above. A first-order image there would add an error of
gamma h^2 / 2 z'' per step that nothing cancels, and turn the second-order solver into a first-order one. The
2M formula toward level i+1 with the same two predictions has r_0 = -1, so its extrapolation becomes their
mean:

    F_i(i+1) = alpha_{i+1} m + sigma_{i+1} (z_i - alpha_i m) / sigma_i,   m = (m_i + m_{i+1}) / 2

Measured on a 64-dimensional mixture with its exact denoiser, RMS to a fine solution at 10 / 20 / 40 steps: on
an even grid that ends at timestep 1 (`set_timesteps(timesteps=...)`) gamma = 0 has 0.107/0.048/0.018,
gamma = 0.25 0.060/0.0018/0.0046, gamma = 1 0.53/0.13/0.030. Its own `linspace` and `leading` grids end with a
long first-order step, which dominates: 0.071/0.029/0.013 against 0.073/0.031/0.014, no gain.
"""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin  # noqa: F401  (lets a saved pipeline load)
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ..._options import init_with_options
from .recurrence import check_options, image_at, two_step


class BDIADPMSolverMultistepScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++(2M) with BDIA's correction; drop-in for `DPMSolverMultistepScheduler`, not invertible.

    Args:
        gamma: weight of the correction, in [0, 1]; 0 is DPM-Solver++(2M). About 0.25; 1 is worse than none.

    The other arguments are `DPMSolverMultistepScheduler`'s. State and arithmetic are float32, as there.

    Raises:
        ValueError: gamma outside [0, 1], an algorithm other than `"dpmsolver++"`, or an order other than 2
            (order 1 is `BDIADDIMScheduler`).
    """

    is_invertible = False

    _previous: torch.Tensor | None = None

    __init__ = init_with_options(DPMSolverMultistepScheduler, {"gamma": 0.25})

    def _check_options(self) -> None:
        c = self.config
        check_options(c.gamma, "bdia", "algebraic", "float32")
        if c.algorithm_type != "dpmsolver++" or c.solver_order != 2:
            raise ValueError(
                "BDIADPMSolverMultistepScheduler is DPM-Solver++(2M): algorithm_type='dpmsolver++' and "
                f"solver_order=2, got {c.algorithm_type!r} and {c.solver_order}. "
                "Order 1 is BDIADDIMScheduler."
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Lays out the run and forgets the last one; the arguments are `DPMSolverMultistepScheduler`'s."""
        super().set_timesteps(num_inference_steps, device=device, mu=mu, timesteps=timesteps)
        self._previous = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """One step; arguments and result as in `DPMSolverMultistepScheduler.step` (no noise is drawn)."""
        z = sample.float()
        z_next = super().step(model_output.float(), timestep, z, return_dict=False)[0]
        if self._previous is not None:
            i = self.step_index - 1  # the parent has counted already; position i - 1 is the level above
            (alpha, sigma), level_above = (self._level(position) for position in (i, i - 1))
            m = (self.model_outputs[-1] + self.model_outputs[-2]) / 2
            z_next = two_step(
                z_next, image_at(m, (z - alpha * m) / sigma, level_above), self._previous, self.config.gamma
            )
        self._previous = z
        z_next = z_next.to(sample.dtype)
        return SchedulerOutput(prev_sample=z_next) if return_dict else (z_next,)

    def _level(self, position: int) -> tuple[float, float]:
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[position])
        return float(alpha), float(sigma)
