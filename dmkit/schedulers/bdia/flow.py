"""BDIA for flow-matching models (SD3, Flux): the general rule of the paper on straight-line paths.

Extension of Zhang, Lewis, Kleijn (ECCV 2024, arXiv 2307.10829). On x_s = (1 - s) x0 + s n with velocity
v = n - x0 an Euler step from level i to j adds (s_j - s_i) v_i, so the rule reads

    z_{i-1} = z_i + (s_{i-1} - s_i) v_i + gamma (z_{i+1} - z_i - (s_{i+1} - s_i) v_i)

which is the recurrence of `recurrence` with levels (1 - s_j, s_j), x0_i = z_i - s_i v_i and
e_i = z_i + (1 - s_i) v_i.

gamma = 1 to invert (second order on a uniform grid, and rounding does not grow); to sample, 0.5–0.75 in 10
steps or fewer, else 1; never 1 on Karras grids. Models whose guidance is an input (Flux) need the same value
both ways.
"""

from __future__ import annotations

import warnings

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin  # noqa: F401  (lets a saved pipeline load)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..._options import init_with_options
from .recurrence import GAMMA_ADVICE, check_options
from .trajectory import check_steps
from .walker import BDIAWalker


class BDIAFlowMatchEulerDiscreteScheduler(BDIAWalker, FlowMatchEulerDiscreteScheduler):
    """Euler's flow-matching scheduler with BDIA's correction; `FlowMatchEulerDiscreteScheduler`'s drop-in.

    Args:
        gamma: weight of the correction, in [0, 1]; 0 is Euler. See the module's docstring for which one.
        reversible: `"algebraic"` or `"bitwise"` (gamma = 1), as in `BDIADDIMScheduler`.
        state_dtype: `"float64"` or `"float32"`, the precision of the state kept here.
        max_amplification: largest gamma^-N that the inverse scheduler accepts.

    The other arguments are `FlowMatchEulerDiscreteScheduler`'s.

    Raises:
        ValueError: `stochastic_sampling=True`, gamma outside [0, 1], or an unknown option.
    """

    __init__ = init_with_options(
        FlowMatchEulerDiscreteScheduler,
        {"gamma": 1.0, "reversible": "algebraic", "state_dtype": "float64", "max_amplification": 1e3},
    )

    def _check_options(self) -> None:
        c = self.config
        check_options(c.gamma, "bdia", c.reversible, c.state_dtype)
        if c.stochastic_sampling:
            raise ValueError("stochastic_sampling=True adds noise at every step, which cannot be run back.")
        if c.use_karras_sigmas and c.gamma == 1:
            warnings.warn(f"gamma=1 with use_karras_sigmas=True. {GAMMA_ADVICE}", stacklevel=3)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Lays out the run and forgets the last one; the arguments are `FlowMatchEulerDiscreteScheduler`'s.

        Raises:
            ValueError: fewer than two steps, a start state of another grid, or (the inverse) gamma = 0 or an
                amplification beyond `max_amplification`.
        """
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu, timesteps=timesteps)
        check_steps(self.num_inference_steps)
        self._lay_out([(1 - sigma, sigma) for sigma in self.sigmas.double().flip(0).tolist()])

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
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[torch.Tensor]:
        """One step along the trajectory.

        Args:
            model_output: [B, …] the velocity that the network returned for `sample`, after guidance.
            timestep: the entry of `timesteps` it was given; read only where a run begins mid-grid.
            sample: [B, …] what the network saw.
            s_churn, s_tmin, s_tmax, s_noise, generator: accepted because pipelines pass them; no noise.
            per_token_timesteps: not supported.
            return_dict: a `FlowMatchEulerDiscreteSchedulerOutput`, or else a tuple of the next sample.

        Returns:
            The next state, rounded to the sample's dtype.

        Raises:
            ValueError: `per_token_timesteps`, or the first sample is not the state given to `set_start`.
            RuntimeError: before `set_timesteps` or after the last step.
        """
        if per_token_timesteps is not None:
            raise ValueError(
                "per_token_timesteps is not supported: the recurrence keeps one level for the sample."
            )
        z_next, _ = self._walk(model_output, timestep, sample)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=z_next) if return_dict else (z_next,)

    def _predict(
        self, model_output: torch.Tensor, z: torch.Tensor, i: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x0_i and e_i = n_i of the straight path with velocity v through z; its images are Euler steps."""
        assert self._levels is not None
        alpha, sigma = self._levels[i]
        return z - sigma * model_output, z + alpha * model_output


class BDIAFlowMatchEulerDiscreteInverseScheduler(BDIAFlowMatchEulerDiscreteScheduler):
    """Runs `BDIAFlowMatchEulerDiscreteScheduler` backwards, from an image to the pair (z_N, z_{N-1}).

    Takes the same arguments; use as `BDIADDIMInverseScheduler`. Timesteps are those of s_1, s_1, s_2, …,
    s_{N-1}.

    Raises:
        ValueError: at `set_timesteps`, for gamma = 0 or gamma^-N > `max_amplification`.
    """

    _direction = 1
