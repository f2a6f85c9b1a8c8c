"""EDICT as a pair of schedulers: the two-call baseline of exact inversion.

Wallace, Gokul, Naik, *EDICT: Exact Diffusion Inversion via Coupled Transformations*, CVPR 2023, arXiv
2211.12446. Two coupled states x and y are moved by each other's noise prediction and then mixed with weight
p. From level i to i-1, with a = alpha_{i-1} / alpha_i and b = sigma_{i-1} - a sigma_i:

    x~ = a x + b e(y, t_i)                y' and x' mixed:   x' = p x~ + (1-p) y~
    y~ = a y + b e(x~, t_i)                                  y' = p y~ + (1-p) x'

and back, in the reversed order:

    y~ = (y' - (1-p) x') / p              y = (y~ - b e(x~, t_i)) / a
    x~ = (x' - (1-p) y~) / p              x = (x~ - b e(y,  t_i)) / a

Each level takes two network calls. In an unmodified pipeline that is a scheduler of order 2 whose timesteps
come twice: the sample handed over is y for the first call of a level and x~ for the second (x~ and y on the
way back). Rounding grows like p^(-2N).
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, SchedulerMixin  # noqa: F401  (the name is what lets a saved pipeline load)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ..._options import init_with_options
from .._options import is_real
from .recurrence import check_options
from .trajectory import Call
from .vp import VPTrajectory, refuse_noise


class EDICTScheduler(VPTrajectory, DDIMScheduler):
    """Samples with EDICT's coupled pair (arXiv 2211.12446), two network calls per step.

    A run's pair is (end, before) = (y, x); a fresh run starts with x = y.

    Args:
        mixing: p in (0, 1], the weight of the mixing; 0.93 in the paper.
        state_dtype: `"float64"` or `"float32"`, the precision of the states kept here.

    The other arguments are `DDIMScheduler`'s, with `clip_sample` off by default.

    Raises:
        ValueError: mixing outside (0, 1], or an unknown option.
    """

    order = 2

    __init__ = init_with_options(
        DDIMScheduler, {"mixing": 0.93, "state_dtype": "float64"}, defaults={"clip_sample": False}
    )

    def _check_options(self) -> None:
        mixing = self.config.mixing
        if not is_real(mixing) or not 0 < mixing <= 1:
            raise ValueError(f"mixing must lie in (0, 1], got {mixing!r}; 0.93 is the paper's.")
        check_options(1.0, "bdia", "algebraic", self.config.state_dtype)
        self._check_prediction_type()

    def _calls(self, num_levels: int, resumed: bool) -> list[Call]:
        return [(i, i) for i in range(num_levels, 0, -1) for _ in range(2)]

    def _arrange(self, end: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return end, before

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Half a level: what the network shall see next.

        Args:
            model_output: [B, C, H, W] what the network returned for `sample`, after guidance.
            timestep: the entry of `timesteps` it was given; read only where a run begins mid-grid.
            sample: [B, C, H, W] what the network saw.
            eta: must be 0.
            use_clipped_model_output, generator: as in `BDIADDIMScheduler.step`.
            return_dict: a `DDIMSchedulerOutput`, or else the tuple of its two tensors.

        Raises:
            ValueError: eta > 0, or the first sample is not the state given to `set_start`.
            RuntimeError: before `set_timesteps` or after the last step.
        """
        refuse_noise(eta)
        seen, i = self._enter(sample, timestep)
        x0, e = self._predict(model_output.to(seen.dtype), seen, i, bool(use_clipped_model_output))
        assert self._levels is not None
        assert self._step_index is not None
        (alpha, sigma), (alpha_next, sigma_next) = self._levels[i], self._levels[i - 1]
        a = alpha_next / alpha
        shift = (sigma_next - a * sigma) * e  # b e
        partner = seen if self._partner is None else self._partner
        state, partner = self._move(
            seen, partner, a, shift, second=self._step_index % 2 == 1, last=self._is_last
        )
        new, x0 = self._leave(state, partner, like=sample), x0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=new, pred_original_sample=x0) if return_dict else (new, x0)

    @property
    def _is_last(self) -> bool:
        return self._step_index == len(self._plan) - 1

    def _move(
        self,
        seen: torch.Tensor,
        partner: torch.Tensor,
        a: float,
        shift: torch.Tensor,
        second: bool,
        last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the network sees next, its partner) after the first or the second call of a level."""
        if not second:  # saw y, partner x
            return a * partner + shift, seen  # x~, y
        x_tilde, y_tilde = seen, a * partner + shift  # saw x~, partner y
        p = self.config.mixing
        x = p * x_tilde + (1 - p) * y_tilde
        return p * y_tilde + (1 - p) * x, x


class EDICTInverseScheduler(EDICTScheduler):
    """Runs `EDICTScheduler` backwards, from an image (x = y = z_0) or a pair to the pair at the noise end."""

    def _calls(self, num_levels: int, resumed: bool) -> list[Call]:
        return [(i, i) for i in range(1, num_levels + 1) for _ in range(2)]

    def _arrange(self, end: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._unmix(end.double(), before.double())

    def _unmix(self, y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x~, y~) before the mixing that gave x' and y'."""
        p = self.config.mixing
        y_tilde = (y - (1 - p) * x) / p
        return (x - (1 - p) * y_tilde) / p, y_tilde

    def _move(
        self,
        seen: torch.Tensor,
        partner: torch.Tensor,
        a: float,
        shift: torch.Tensor,
        second: bool,
        last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        moved = (partner - shift) / a  # y from y~, then x from x~
        if not second:
            return moved, seen
        return (seen, moved) if last else self._unmix(seen, moved)
