"""BDIA on EDM's variance-exploding grid: sampling with Euler or Heun steps.

Zhang, Lewis, Kleijn (ECCV 2024, arXiv 2307.10829) report BDIA-EDM; the forms here follow its general rule
with Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, arXiv 2206.00364.
With the denoiser D(z, t) and the slope d_i = (z_i - D(z_i, t_i)) / t_i,

    z_{i-1} = F_i(i-1) + gamma (z_{i+1} - F_i(i+1))
    F_i(j) = z_i + (t_j - t_i) d_i                     order 1, Euler
    F_i(j) = z_i + (t_j - t_i) (d_i + d'_j) / 2        order 2, Heun; d'_j the slope at z_i + (t_j - t_i) d_i

Order 1 is BDIA-DDIM with levels (1, t_j): one call per step. Order 2 asks the network three times per step
(here, ahead, behind), and each increment is a function of z_i alone. The last step ends at t = 0, where there
is no slope: it goes Euler, as in EDM.

On Karras grids one step is much longer than the next, which leaves gamma = 1 (leapfrog) far off the
trajectory: about 0.25 for Euler, 0.25–0.5 for Heun.
"""

from __future__ import annotations

import warnings

import torch
from diffusers import EDMEulerScheduler, SchedulerMixin  # noqa: F401  (lets a saved pipeline load)
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput

from ..._options import init_with_options
from .recurrence import GAMMA_ADVICE, check_options, two_step
from .trajectory import Call, check_steps
from .walker import BDIAWalker


class BDIAEDMScheduler(BDIAWalker, EDMEulerScheduler):
    """EDM's Euler scheduler with BDIA's correction, or its Heun form; drop-in for `EDMEulerScheduler`.

    Args:
        gamma: weight of the correction, in [0, 1]; 0 is EDM's own solver. Never 1 on Karras grids.
        solver_order: 1 (Euler, N calls) or 2 (Heun in both directions, 3N - 2 calls, in that order).
        state_dtype: `"float64"` or `"float32"`, the precision of the state kept here.

    The other arguments are `EDMEulerScheduler`'s.

    Raises:
        ValueError: gamma outside [0, 1], or another solver order.
    """

    is_invertible = False
    _base: torch.Tensor  # z_i and the slopes d_j found for it, while a Heun step is under way
    _slopes: dict[int, torch.Tensor]

    __init__ = init_with_options(
        EDMEulerScheduler, {"gamma": 0.25, "solver_order": 1, "state_dtype": "float64"}
    )

    def _check_options(self) -> None:
        c = self.config
        check_options(c.gamma, "bdia", "algebraic", c.state_dtype)
        if c.solver_order not in (1, 2):
            raise ValueError(f"solver_order must be 1 (Euler) or 2 (Heun), got {c.solver_order!r}.")
        if c.gamma == 1 and c.sigma_schedule == "karras":
            warnings.warn(f"gamma=1 on a Karras grid. {GAMMA_ADVICE}", stacklevel=3)

    @property
    def order(self) -> int:
        """What pipelines multiply the number of steps with, for their progress bars."""
        return self.config.solver_order

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: torch.Tensor | None = None,
    ) -> None:
        """Lays out the run and forgets the last one; the arguments are `EDMEulerScheduler`'s.

        Raises:
            ValueError: fewer than two steps.
        """
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
        check_steps(len(self.timesteps))
        self._lay_out([(1.0, sigma) for sigma in self.sigmas.double().flip(0).tolist()])

    def _calls(self, num_levels: int, resumed: bool) -> list[Call]:
        if self.config.solver_order == 1:
            return super()._calls(num_levels, resumed)
        # here, ahead (not at the end of the grid), behind (not in the bootstrap)
        return [(i, j) for i in range(num_levels, 0, -1) for j in (i, i - 1, i + 1) if 1 <= j <= num_levels]

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """`sample` times EDM's c_in of the noise level that the next network call is made at."""
        self.is_scale_input_called = True
        assert self._levels is not None
        position = self._locate(timestep) if self._step_index is None else self._step_index
        return self.precondition_inputs(sample, self._levels[self._plan[position][1]][1])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EDMEulerSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One network call's worth of a step: what the network shall see next.

        Args:
            model_output: [B, …] what the network returned for the scaled `sample`.
            timestep: the entry of `timesteps` it was given; read only where a run begins mid-grid.
            sample: [B, …] the unscaled sample.
            s_churn: must be 0. s_tmin, s_tmax, s_noise, generator: accepted because pipelines pass them.
            return_dict: an `EDMEulerSchedulerOutput`, or else the tuple of its two tensors.

        Raises:
            ValueError: s_churn > 0.
            RuntimeError: before `set_timesteps` or after the last step.
        """
        if s_churn:
            raise ValueError(f"s_churn must be 0, got {s_churn}: BDIA's trajectory is deterministic.")
        advance = self._walk if self.config.solver_order == 1 else self._heun
        z_next, x0 = advance(model_output, timestep, sample)
        return (
            EDMEulerSchedulerOutput(prev_sample=z_next, pred_original_sample=x0)
            if return_dict
            else (z_next, x0)
        )

    def _predict(
        self, model_output: torch.Tensor, z: torch.Tensor, i: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """D(z, t_i) and the slope d = (z - D) / t_i."""
        assert self._levels is not None
        sigma = self._levels[i][1]
        x0 = self.precondition_outputs(z, model_output, sigma)
        return x0, (z - x0) / sigma

    def _heun(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`_walk` with several calls per level: collects the slopes of level i, then takes the two-step."""
        seen, i = self._enter(sample, timestep)
        assert self._step_index is not None
        _, asked = self._plan[self._step_index]
        x0, slope = self._predict(model_output.to(seen.dtype), seen, asked)
        if asked == i:
            self._base, self._slopes = seen, {}
        self._slopes[asked] = slope
        later = self._plan[self._step_index + 1 : self._step_index + 2]
        if (
            later and later[0][0] == i
        ):  # the network is asked again for this level, at the far end of an Euler step
            state, partner = self._image(i, later[0][1]), self._partner
        else:
            state, partner = self._image(i, i - 1), self._base
            if self._partner is not None:
                state = two_step(state, self._image(i, i + 1), self._partner, self._gammas[i])
        return self._leave(state, partner, like=sample), x0.to(sample.dtype)

    def _image(self, i: int, j: int) -> torch.Tensor:
        """F_i(j): Heun when the slope at level j is known, else Euler."""
        assert self._levels is not None
        slope = (self._slopes[i] + self._slopes.get(j, self._slopes[i])) / 2
        return self._base + (self._levels[j][1] - self._levels[i][1]) * slope
