"""Time-Shift for the solvers that keep an array of σ: DPM-Solver++, UniPC, DEIS, Euler.

After the parent's step has produced state k, the entries `timesteps[k]` and `sigmas[k]` are overwritten by
the label and its σ. The next call reads them as its current level, and a multistep solver's memory already
holds the levels at which its old outputs were evaluated, so its coefficients stay consistent. In level mode
`sigmas[k]` is exchanged during the step that aims at it, and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,  # noqa: F401
    UniPCMultistepScheduler,
)
from torch import Tensor

from ..epsilon_scaling import scale_epsilon
from .mixin import DiscreteTimeShift, TimeShift


class SigmaTimeShift(TimeShift):
    """Time-Shift for schedulers with `sigmas` and `step_index`."""

    sigmas: Tensor
    _choose: Callable[[int, Tensor], Tensor | None]
    """The label of the state after call i, judged by x."""
    _sigma: Callable[[Tensor], Tensor]
    """The noise scale of a label, 0-d."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """The parent's, and a fresh start: no label outlives it."""
        super().set_timesteps(*args, **kwargs)
        self._scheduled_sigmas: list[float] = self.sigmas.tolist()

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The parent's step; the output also has `shifted_timesteps`, the label of the state it returns (None
        if that is not shifted).
        """
        i = self._locate(timestep)
        model_output = self._scaled(model_output, sample, i)
        if self.config.time_shift_mode == "level":
            with self._aiming_at(i, self._choose(i, sample)):
                output = super().step(model_output, timestep, sample, *args, **kwargs)  # type: ignore[misc]
            label = None
        else:
            output = super().step(model_output, timestep, sample, *args, **kwargs)  # type: ignore[misc]
            label = self._label = self._choose(i, output[0])
            if label is not None:
                self._write(i + 1, label)
        if not isinstance(output, tuple):
            output.shifted_timesteps = label
        return output

    def _scaled(self, output: Tensor, sample: Tensor, i: int) -> Tensor:
        return output

    def _write(self, k: int, label: Tensor) -> None:
        # The scheduled σ may be interpolated between timesteps: no shift leaves it exactly as it was.
        if label.item() != round(self._schedule[k]):
            self.timesteps[k], self.sigmas[k] = label, self._sigma(label)

    def _forget(self, i: int) -> None:
        super()._forget(i)
        self.sigmas[i] = self._scheduled_sigmas[i]

    @contextmanager
    def _aiming_at(self, i: int, label: Tensor | None) -> Iterator[None]:
        if label is not None:
            self.sigmas[i + 1] = self._sigma(label)
        try:
            yield
        finally:
            self.sigmas[i + 1] = self._scheduled_sigmas[i + 1]


class DiscreteSigmaTimeShift(SigmaTimeShift, DiscreteTimeShift):
    """Those of them on T training timesteps, with states alpha x0 + sigma n."""

    def _sigma(self, label: Tensor) -> Tensor:
        abar = self.alphas_cumprod[int(label)].double()
        return ((1 - abar) / abar) ** 0.5

    def _scaled(self, output: Tensor, sample: Tensor, i: int) -> Tensor:
        if not (b := self.config.epsilon_scaling):
            return output
        sigma = self.sigmas[i].to(sample.device)
        alpha = 1 / (1 + sigma**2) ** 0.5
        state = self._preserving(sample, alpha)
        kind = self.config.prediction_type
        return scale_epsilon(output, state, alpha, sigma * alpha, kind, b).to(output.dtype)

    def _preserving(self, sample: Tensor, alpha: Tensor) -> Tensor:
        """The state in its variance-preserving form."""
        return sample


class TimeShiftDPMSolverMultistepScheduler(DiscreteSigmaTimeShift, DPMSolverMultistepScheduler):
    """DPM-Solver++ (and DPM-Solver) with Time-Shift; arguments: the parent's and those of `TimeShift`."""


class TimeShiftUniPCMultistepScheduler(DiscreteSigmaTimeShift, UniPCMultistepScheduler):
    """UniPC with Time-Shift, whose corrector reads the shifted level too; arguments: the parent's and
    ours.
    """


class TimeShiftDEISMultistepScheduler(DiscreteSigmaTimeShift, DEISMultistepScheduler):
    """DEIS with Time-Shift; arguments: the parent's and those of `TimeShift`."""


class TimeShiftEulerDiscreteScheduler(DiscreteSigmaTimeShift, EulerDiscreteScheduler):
    """Euler with Time-Shift. Its states are x0 + σ n, so the variance of level u is σ_u² (+ v_0, marginal
    rule).

    Arguments: `EulerDiscreteScheduler`'s and those of `TimeShift`.
    """

    def _check_family(self) -> None:
        super()._check_family()
        if self.config.timestep_type != "discrete":
            raise ValueError(
                f"timestep_type={self.config.timestep_type!r} has no training timesteps to search; "
                "use 'discrete'."
            )

    def _variance_levels(self, abar: Tensor) -> Tensor:
        v_0 = self.config.time_shift_data_variance if self.config.time_shift_variance == "marginal" else 0.0
        return (1 - abar) / abar + v_0

    def _looks_like_latents(self, variance: Tensor, timestep: int) -> bool:
        # A variance-exploding state of variance σ² + v_0 shrinks to (σ² + v_0) ᾱ.
        return super()._looks_like_latents(variance * float(self.alphas_cumprod[timestep]), timestep)

    def _preserving(self, sample: Tensor, alpha: Tensor) -> Tensor:
        return sample * alpha
