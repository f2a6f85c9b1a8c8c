"""Time-Shift where the noise level is continuous: EDM and flow matching, both extensions of the paper.

There is no window of candidates to search: the level whose variance equals the state's has a closed form
(`search.edm_sigma`, `search.flow_sigma`), which is clipped to the window.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin  # noqa: F401
from torch import Tensor

from .._options import is_real
from .mixin import AUTO, Shift, TimeShift
from .search import edm_sigma, flow_sigma, flow_turning_point
from .sigma import SigmaTimeShift

AUTO_FRACTION = 0.3  # of the neighbouring step, on each side


class ContinuousTimeShift(SigmaTimeShift):
    """What EDM and flow matching share: σ itself is the label."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        key: default
        for key, default in TimeShift.OPTIONS.items()
        if key not in ("time_shift_variance", "time_shift_allow_latents", "epsilon_scaling")
    }

    def _check_family(self) -> None:
        if self.config.time_shift_mode == "level":
            raise ValueError(f"{type(self).__name__} has no time_shift_mode='level'; use 'label'.")

    def _reach(self, i: int) -> tuple[float, float]:
        """How far below and above `sigmas[i + 1]` the window reaches, in σ."""
        fraction = self._fraction()
        before, here, after = self._scheduled_sigmas[i : i + 3]
        return fraction * (here - after), fraction * (before - here)

    def _fraction(self) -> float:
        """The reach to each side as a fraction of the step on that side, so that levels stay in order."""
        return AUTO_FRACTION

    def _label_of(self, variance: Tensor) -> Tensor:
        raise NotImplementedError

    def _times(self, labels: Tensor) -> Tensor:
        """What the network is told for σ."""
        raise NotImplementedError

    def _choose(self, i: int, x: Tensor) -> Tensor | None:
        if not self._may_shift(i):
            return None
        centre = self._scheduled_sigmas[i + 1]
        below, above = self._reach(i)
        variance = self._measure(x)
        label = self._label_of(variance).clamp(centre - below, centre + above)
        if self._label is not None:  # levels stay in strictly decreasing order
            label = torch.minimum(label, self._label * (1 - 1e-6))
        self.time_shift_trace.append(Shift(self._schedule[i + 1], self._times(label), variance))
        return label

    def _sigma(self, label: Tensor) -> Tensor:
        return label

    def _write(self, k: int, label: Tensor) -> None:
        self.sigmas[k], self.timesteps[k] = label, self._times(label)


class TimeShiftEDMEulerScheduler(ContinuousTimeShift, EDMEulerScheduler):
    """EDM's Euler sampler with Time-Shift: σ_s = sqrt(max(var - v_0, 0)) within the window.

    Karras grids have no common stride, so `time_shift_window` is the full width of the window as a fraction
    of the neighbouring steps in σ, in [0, 2) (`"auto"`: 0.6), and `time_shift_cutoff` is a σ
    (`"auto"`: 2 sigma_data, where the data's own variance begins to hide the noise's). v_0 is
    `time_shift_data_variance`, or sigma_data². The other arguments are `EDMEulerScheduler`'s and those of
    `TimeShift`.
    """

    def _check_window_option(self, window: Any) -> None:
        if not is_real(window) or not 0 <= window < 2:
            raise ValueError(
                f"time_shift_window of {type(self).__name__} must be 'auto' or a fraction of the step "
                f"in [0, 2), got {window!r}."
            )

    def _check_window(self) -> None:
        """A fraction below 2 never reaches a whole step."""

    def _largest_time(self) -> float:
        return self.config.sigma_max

    def _may_shift(self, i: int) -> bool:
        cutoff = self.config.time_shift_cutoff
        cutoff = 2 * self.config.sigma_data if cutoff == AUTO else cutoff
        return (
            self.config.time_shift_window != 0
            and not self._off
            and i + 1 < len(self.timesteps)
            and self._scheduled_sigmas[i] > cutoff
        )

    def _fraction(self) -> float:
        window = self.config.time_shift_window
        return AUTO_FRACTION if window == AUTO else window / 2

    def _label_of(self, variance: Tensor) -> Tensor:
        v_0 = self.config.time_shift_data_variance
        return edm_sigma(variance, self.config.sigma_data**2 if v_0 is None else v_0)

    def _times(self, labels: Tensor) -> Tensor:
        return 0.25 * labels.log()  # c_noise(σ), Karras et al. 2022, table 1


class TimeShiftFlowMatchEulerDiscreteScheduler(ContinuousTimeShift, FlowMatchEulerDiscreteScheduler):
    """Flow matching (SD3, Flux) with Time-Shift: var = (1-σ)² v_0 + σ², solved for σ where it grows with σ.

    This is not the `shift` of SD3's and Flux's schedules, which moves the whole grid and stays in force here.
    `time_shift_window` and `time_shift_cutoff` are in timesteps, 1000 σ; `"auto"` reaches 0.3 of the step to
    each side, and leaves states at σ <= max(0.6, v_0/(1+v_0) + 0.1) alone, where the variance hardly changes
    with σ. v_0 is `time_shift_data_variance`, or 1, the variance of normalised latents. The other arguments
    are `FlowMatchEulerDiscreteScheduler`'s and those of `TimeShift`.
    """

    OFFERS_SAMPLE_SCOPE = True

    def _v_0(self) -> float:
        v_0 = self.config.time_shift_data_variance
        return 1.0 if v_0 is None else v_0

    def _check_family(self) -> None:
        super()._check_family()
        if self.config.stochastic_sampling and self.config.time_shift_scope == "sample":
            raise ValueError("stochastic_sampling has no form with a level for each sample.")

    def _may_shift(self, i: int) -> bool:
        cutoff = self.config.time_shift_cutoff
        v_0, steps = self._v_0(), self.config.num_train_timesteps
        if self.config.time_shift_window == 0 or self._off or i + 1 >= len(self.timesteps):
            return False
        here, new = self._grid_sigma(i), self._grid_sigma(i + 1)
        if cutoff == AUTO:
            return new > max(0.6, flow_turning_point(v_0) + 0.1)
        return here > cutoff / steps and new > flow_turning_point(v_0)

    def _grid_sigma(self, i: int) -> float:
        return self._schedule[i] / self.config.num_train_timesteps

    def _reach(self, i: int) -> tuple[float, float]:
        window = self.config.time_shift_window
        if window == AUTO:
            return super()._reach(i)
        half = window / 2 / self.config.num_train_timesteps
        return half, half

    def _label_of(self, variance: Tensor) -> Tensor:
        return flow_sigma(variance, self._v_0())

    def _times(self, labels: Tensor) -> Tensor:
        return labels * self.config.num_train_timesteps

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `SigmaTimeShift.step`; with scope "sample" each image steps from its own σ_s."""
        if self._label is None or not self._label.ndim:
            return super().step(model_output, timestep, sample, *args, **kwargs)
        self._require_delivery()
        # The parent steps everybody from the scheduled σ_i; each image's own start is σ_s away from that:
        # x + (σ' - σ_s) v = [x + (σ_i - σ_s) v] + (σ' - σ_i) v.
        i = self._position + 1 if self._position is not None else 0
        own = self._label.to(sample.device, torch.float32).view(-1, *[1] * (sample.ndim - 1))
        moved = sample.float() + (self._scheduled_sigmas[i] - own) * model_output.float()
        return super().step(model_output, timestep, moved, *args, **kwargs)

    def _write(self, k: int, label: Tensor) -> None:
        if label.ndim:
            self._delivered = False
        else:
            super()._write(k, label)
