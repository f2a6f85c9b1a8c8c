"""Time-Shift for DDIM, DDPM and PNDM, whose steps look ᾱ up by timestep.

Each runs its parent's own step at the *scheduled* time, with one entry of `alphas_cumprod` exchanged for its
duration. Everything else the parent derives from the timestep (the step's target above all) stays scheduled.

    label mode    ᾱ of the step's start is ᾱ_s:    x0 = (x - sqrt(1-ᾱ_s) e) / sqrt(ᾱ_s),  x' = sqrt(ᾱ_c) x0 +
    … level mode    ᾱ of the step's target is ᾱ_u

Per-sample labels are the same with an `alphas_cumprod` of shape (T, B, 1, …).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, SchedulerMixin  # noqa: F401
from torch import Tensor

from ..epsilon_scaling import scale_epsilon
from .mixin import DiscreteTimeShift


class AlphaTimeShift(DiscreteTimeShift):
    """Time-Shift for schedulers that read `alphas_cumprod[timestep]`."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The parent's step from the state's shifted label; the output also has `shifted_timesteps`, the
        labels of the state it returns (None if that is not shifted).
        """
        i = self._locate(timestep)
        self._require_delivery()
        if b := self.config.epsilon_scaling:
            model_output = self._scaled(model_output, sample, i, b)
        if self.config.time_shift_mode == "level":
            exchange = self._target(i), self._choose(i, self._started_from(i, sample))
        else:
            exchange = self._schedule[self._group(i)], self._label
        with self._exchanged(*exchange, sample):
            output = super().step(  # type: ignore[misc]
                model_output, self._parent_timestep(i), sample, *args, **kwargs
            )
        label = None
        if self.config.time_shift_mode == "label" and self._begun_at(i) is not None:
            label = self._label = self._choose(i, output[0])
            if label is not None and not label.ndim:
                self._write(i + 1, label)
            self._delivered = label is None or not label.ndim
        if not isinstance(output, tuple):
            if output.prev_sample.dtype != sample.dtype:  # (B, 1, …) factors in float32 have widened it
                output.prev_sample = output.prev_sample.to(sample.dtype)
            output.shifted_timesteps = label
        return output

    def _group(self, i: int) -> int:
        """The entry whose level the parent takes for the start of the step that call `i` belongs to."""
        return i

    def _parent_timestep(self, i: int) -> int:
        """The timestep under which the parent finds its place."""
        return self._schedule[i]

    def _target(self, i: int) -> int:
        """The timestep whose ᾱ the parent takes for the target of call `i`; negative at the end."""
        return self._schedule[i] - self.config.num_train_timesteps // self.num_inference_steps  # type: ignore[attr-defined]

    def _started_from(self, i: int, sample: Tensor) -> Tensor:
        """The state that the solver step of call `i` starts from."""
        return sample

    def _write(self, k: int, label: Tensor) -> None:
        """Shows the network the label of entry `k`: pipelines iterate over views of this tensor."""
        self.timesteps[k] = label

    def _level(self, label: Tensor | int, sample: Tensor) -> Tensor:
        """ᾱ of a label, broadcastable to the sample."""
        abar = self.alphas_cumprod[label]
        return abar.to(sample.device).view(-1, *[1] * (sample.ndim - 1)) if abar.ndim else abar

    @contextmanager
    def _exchanged(self, at: int, label: Tensor | None, sample: Tensor) -> Iterator[None]:
        """`alphas_cumprod[at]` is ᾱ of `label` inside the block."""
        if label is None or at < 0:
            yield
            return
        true = self.alphas_cumprod
        if label.ndim:
            table = (
                true.to(sample.device)
                .view(-1, *[1] * sample.ndim)
                .repeat(1, len(label), *[1] * (sample.ndim - 1))
            )
        else:
            table = true.clone()
        table[at] = self._level(label, sample)
        self.alphas_cumprod = table
        try:
            yield
        finally:
            self.alphas_cumprod = true

    def _scaled(self, output: Tensor, sample: Tensor, i: int, b: float) -> Tensor:
        # What the network was told: a label of each image's own, or what stands in the timesteps.
        own = self._label is not None and self._label.ndim > 0
        abar = self._level(self._label if own else int(self.timesteps[i]), sample)  # type: ignore[arg-type]
        kind, channels = self.config.prediction_type, sample.shape[1]
        scaled = scale_epsilon(output[:, :channels], sample, abar**0.5, (1 - abar) ** 0.5, kind, b)
        # A learned variance rides behind the prediction and is left alone.
        return torch.cat([scaled.to(output.dtype), output[:, channels:]], dim=1)


class TimeShiftDDIMScheduler(AlphaTimeShift, DDIMScheduler):
    """DDIM (also with eta > 0) with Time-Shift; the arguments are `DDIMScheduler`'s and those of `TimeShift`.

    `pipe.scheduler = TimeShiftDDIMScheduler.from_config(pipe.scheduler.config, time_shift_window=40)`;
    `DDIMPipeline` replaces the scheduler it is built with, so assign it afterwards.
    """

    OFFERS_SAMPLE_SCOPE = True


class TimeShiftDDPMScheduler(AlphaTimeShift, DDPMScheduler):
    """DDPM with Time-Shift; the arguments are `DDPMScheduler`'s and those of `TimeShift`."""

    OFFERS_SAMPLE_SCOPE = True

    def previous_timestep(self, timestep: int) -> Any:
        """The scheduled neighbour; the parent would look among the shifted labels."""
        if not self._schedule:
            return super().previous_timestep(timestep)
        i = self._schedule.index(int(timestep)) + 1
        return self._schedule[i] if i < len(self._schedule) else -1

    def _target(self, i: int) -> int:
        return self._schedule[i + 1] if i + 1 < len(self._schedule) else -1


class TimeShiftPNDMScheduler(AlphaTimeShift, PNDMScheduler):
    """PNDM with Time-Shift: S-PNDM with `skip_prk_steps=True`, else F-PNDM with its three Runge-Kutta starts.

    Only completed steps are shifted: in a Runge-Kutta group of four calls the last, in S-PNDM's first step
    the second. A group that starts from a shifted state evaluates its two middle stages half way between the
    label and the group's end. The arguments are `PNDMScheduler`'s and those of `TimeShift`.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As `AlphaTimeShift.step`. `generator` is not used; unconditional pipelines pass one."""
        if self.counter == 0 and timestep in self._schedule[1:] and timestep != self._schedule[0]:
            # The parent counts its starting steps from wherever a run begins, not from the grid's beginning.
            self._off = True
            if self.config.time_shift_window != 0:
                warnings.warn(
                    "An image-to-image run enters PNDM's grid in the middle, where its places are not known; "
                    "Time-Shift is off for this run.",
                    stacklevel=2,
                )
        if self._off:
            return PNDMScheduler.step(self, model_output, timestep, sample, return_dict=return_dict)
        return super().step(model_output, timestep, sample, return_dict=return_dict)

    def _stride(self, i: int) -> float:
        return self.config.num_train_timesteps // self.num_inference_steps

    def _runge_kutta(self, i: int) -> bool:
        return i < len(self.prk_timesteps)

    def _group(self, i: int) -> int:
        return i - i % 4 if self._runge_kutta(i) else i

    def _begun_at(self, i: int) -> int | None:
        if self._runge_kutta(i):
            return i - 3 if i % 4 == 3 else None
        if self.config.skip_prk_steps and i < 2:
            return None if i == 0 else 0
        return i

    def _started_from(self, i: int, sample: Tensor) -> Tensor:
        tentative = self._runge_kutta(i) or (self.config.skip_prk_steps and i == 1)
        return self.cur_sample if tentative and self.cur_sample is not None else sample

    def _write(self, k: int, label: Tensor) -> None:
        super()._write(k, label)
        if self._runge_kutta(k):
            self.timesteps[k + 1 : k + 3] = self._middle(k, label)

    def _middle(self, k: int, label: Tensor) -> int:
        return (int(label) + self._schedule[k + 3]) // 2

    def _parent_timestep(self, i: int) -> int:
        """In a group that starts at label s: what makes the parent's targets (s+u)/2, (s+u)/2, u, u."""
        if not self._runge_kutta(i) or self._label is None or self.config.time_shift_mode == "level":
            return self._schedule[i]
        k, half = self._group(i), self.config.num_train_timesteps // self.num_inference_steps // 2
        middle, end = self._middle(k, self._label), self._schedule[k + 3]
        return (middle + half, middle, end + half, end)[i % 4]

    def _target(self, i: int) -> int:
        if self._begun_at(i) is None:
            return -1
        return self._schedule[i + 1] if i + 1 < len(self._schedule) else -1
