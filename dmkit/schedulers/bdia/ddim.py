"""BDIA-DDIM: the reversible form of DDIM, and the scheduler that runs it backwards.

Zhang, Lewis, Kleijn, *Exact Diffusion Inversion via Bi-directional Integration Approximation*, ECCV 2024,
arXiv 2307.10829; the equations are in `recurrence`, the bookkeeping in `trajectory`. Both work inside an
unmodified pipeline and cost what DDIM costs: N network calls to sample, N to invert, N - 1 to regenerate from
an inverted pair. DPM-Solver++ of order 1 is DDIM, so this is also its BDIA form.

Which gamma:

* inversion and editing: 0.92 … 1. Inversion multiplies errors by 1/gamma per step; at 1 nothing grows.
* sampling in few steps (about 10–20): 0.5. At 1 the recurrence is leapfrog, whose parasitic mode is undamped:
  at 10 steps it is worse than DDIM. gamma = 0 is DDIM and cannot be inverted.
* never 1 on Karras noise grids, whose steps differ too much from one to the next (see `edm`).

The noise code of an image is the pair (z_N, z_{N-1}); from z_N alone the image does not come back.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, SchedulerMixin  # noqa: F401  (the name is what lets a saved pipeline load)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ..._options import init_with_options
from .recurrence import check_options
from .vp import VPTrajectory, refuse_noise
from .walker import BDIAWalker


class BDIADDIMScheduler(VPTrajectory, BDIAWalker, DDIMScheduler):
    """DDIM with BDIA's correction from the previous state (arXiv 2307.10829); drop-in for `DDIMScheduler`.

    `BDIADDIMScheduler.from_config(pipe.scheduler.config, gamma=0.5)` takes over the schedule of another
    scheduler. `DDIMPipeline` replaces the scheduler it is built with by a `DDIMScheduler`: assign
    `pipe.scheduler` afterwards.

    Args:
        gamma: weight of the correction, in [0, 1]; 0 is DDIM. See the module's docstring for which one.
        solver: `"bdia"`, or `"obelm"` for O-BELM's per-level coefficients (gamma is then not used).
        reversible: `"algebraic"`: exact up to rounding of the state dtype; `"bitwise"`: bit-exact (gamma =
            1), states and increments are kept on multiples of 2^-36, `torch.equal` after a round trip.
        state_dtype: `"float64"` or `"float32"`, the precision of the state kept here, not the network's.
        max_amplification: largest gamma^-N that the inverse scheduler accepts.
        clip_sample: as in `DDIMScheduler`, but off by default: clipping hurts the solver, though not its
            inversion.

    The other arguments are `DDIMScheduler`'s.

    Raises:
        ValueError: gamma outside [0, 1], an unknown option, or bitwise with another gamma, solver or state
            dtype.
    """

    __init__ = init_with_options(
        DDIMScheduler,
        {
            "gamma": 1.0,
            "solver": "bdia",
            "reversible": "algebraic",
            "state_dtype": "float64",
            "max_amplification": 1e3,
        },
        defaults={"clip_sample": False},
    )

    def _check_options(self) -> None:
        c = self.config
        check_options(c.gamma, c.solver, c.reversible, c.state_dtype)
        self._check_prediction_type()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step along the trajectory.

        Args:
            model_output: [B, C, H, W] what the network returned for `sample`, after guidance.
            timestep: the entry of `timesteps` it was given; read only where a run begins mid-grid.
            sample: [B, C, H, W] what the network saw; returned by the previous step, or edited since.
            eta: must be 0.
            use_clipped_model_output: derive the noise from the clipped x0, as `DDIMScheduler` does.
            generator, variance_noise: accepted because pipelines pass them; no noise is drawn.
            return_dict: a `DDIMSchedulerOutput`, or else the tuple of its two tensors.

        Returns:
            `prev_sample`, the next state rounded to the sample's dtype, and `pred_original_sample`.

        Raises:
            ValueError: eta > 0, or the first sample is not the state given to `set_start`.
            RuntimeError: before `set_timesteps` or after the last step.
        """
        refuse_noise(eta)
        z_next, x0 = self._walk(model_output, timestep, sample, rederive_e=bool(use_clipped_model_output))
        return (
            DDIMSchedulerOutput(prev_sample=z_next, pred_original_sample=x0) if return_dict else (z_next, x0)
        )


class BDIADDIMInverseScheduler(BDIADDIMScheduler):
    """Runs `BDIADDIMScheduler` backwards, from an image to the pair (z_N, z_{N-1}) (arXiv 2307.10829).

    Takes the same arguments, so that `BDIADDIMInverseScheduler.from_config(sampler.config)` is the sampler's
    inverse. Unlike `DDIMInverseScheduler` it evaluates the network where the sampler will, and takes every
    spacing. In a pipeline: pass the image's latents as `latents`, take `pop_pair()` afterwards. Its timesteps
    are t_1, t_1, t_2, …, t_{N-1}: the first call is the bootstrap at the image, which has no timestep of its
    own.

    Raises:
        ValueError: at `set_timesteps`, for gamma = 0 or gamma^-N > `max_amplification`.
    """

    _direction = 1
