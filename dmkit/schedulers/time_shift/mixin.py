"""What every Time-Shift scheduler shares: its options, its place in the run, and the decision to shift.

`label` mode is Algorithm 3 of arXiv 2305.15583: after a step, the new state is measured, and it is its
*label* that
moves: the network and the next step take the state for one of timestep s instead of its scheduled c. `level`
mode is what the authors' released code does: the state is measured before a step, and the step's *target*
moves, while the label stays scheduled. The two can act in opposite directions, and neither is always a gain:
compare them on your model (`dmkit tune time-shift`).

Never let half a window exceed half a stride: a label above the true level enlarges x0 = (x - …) / sqrt(ᾱ_s),
which raises the next variance, and so the next label.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ..._options import init_with_options
from ...errors import unknown_name
from .._options import is_real, mirrored, takes_anything
from .search import nearest_level, within_image_variance

MODES, RULES, SCOPES = ("label", "level"), ("noise", "marginal"), ("batch", "sample")
AUTO = "auto"


class Shift(NamedTuple):
    """One entry of `time_shift_trace`: a state's scheduled time, the label it got, and its variance.

    `label` and `variance` are tensors, 0-d for scope "batch" and (B,) for scope "sample".
    """

    scheduled: float
    label: Tensor
    variance: Tensor


class TimeShift:
    """Mixin before a Diffusers scheduler; its options are added to the parent's `__init__`.

    Args:
        time_shift_window: w, the width of the search window in training timesteps, half to each side;
            `"auto"` for 0.2 strides to each side, 0 for the parent scheduler.
        time_shift_cutoff: t_c, no state that a step from this timestep or below produces is shifted; `"auto"`
            for 0.3 T.
        time_shift_mode: `"label"` (the paper) or `"level"` (the released code); see the module's docstring.
        time_shift_variance: `"noise"` matches 1 - ᾱ (the paper), `"marginal"` ᾱ v_0 + 1 - ᾱ.
        time_shift_data_variance: v_0, the mean variance within a clean image in the model's units.
        time_shift_scope: `"batch"` gives the batch one label, from its mean variance; `"sample"` gives each
            image its own, and needs `per_sample_timesteps` around the pipeline call.
        time_shift_allow_latents: shift even where the states have about unit variance at every noise level
            (latents of Stable Diffusion), where the variance says nothing about the level.
        epsilon_scaling: b of epsilon scaling (`dmkit.schedulers.epsilon_scaling`); 0 for none.

    Attributes:
        time_shift_trace: the run's `Shift`s so far, one for each state after the first.

    Raises:
        ValueError: options out of range; at `set_timesteps`, a window that reaches a whole stride.
        RuntimeError: `step` before `set_timesteps`.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "time_shift_window": AUTO,
        "time_shift_cutoff": AUTO,
        "time_shift_mode": "label",
        "time_shift_variance": "noise",
        "time_shift_data_variance": None,
        "time_shift_scope": "batch",
        "time_shift_allow_latents": False,
        "epsilon_scaling": 0.0,
    }
    OFFERS_SAMPLE_SCOPE: ClassVar[bool] = False

    # What the mixin uses of the scheduler that it stands before.
    config: Any
    timesteps: Tensor
    register_to_config: Callable[..., None]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parents = [b for b in cls.__mro__ if issubclass(b, SchedulerMixin) and not issubclass(b, TimeShift)]
        if parents:
            cls.__init__ = init_with_options(parents[0], cls.OPTIONS)  # type: ignore[method-assign]
            for name in ("step", "set_timesteps"):
                if takes_anything(method := getattr(cls, name)):
                    setattr(cls, name, mirrored(method, getattr(parents[0], name)))

    # -- options -------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        c = self.config
        for key, known in (("mode", MODES), ("variance", RULES), ("scope", SCOPES)):
            value = c.get(f"time_shift_{key}", known[0])
            if value not in known:
                raise unknown_name(f"time_shift_{key}", str(value), known)
        cutoff, v_0 = c.time_shift_cutoff, c.time_shift_data_variance
        if c.time_shift_window != AUTO:
            self._check_window_option(c.time_shift_window)
        if cutoff != AUTO and (not is_real(cutoff) or not 0 <= cutoff <= self._largest_time()):
            raise ValueError(
                f"time_shift_cutoff must be 'auto' or lie in [0, {self._largest_time()}], got {cutoff!r}."
            )
        if v_0 is not None and (not is_real(v_0) or v_0 <= 0):
            raise ValueError(f"time_shift_data_variance must be a positive number, got {v_0!r}.")
        if c.get("time_shift_variance") == "marginal" and v_0 is None:
            raise ValueError(
                "time_shift_variance='marginal' needs time_shift_data_variance, the mean variance within a "
                "clean image in the model's units."
            )
        if c.time_shift_scope == "sample" and not self.OFFERS_SAMPLE_SCOPE:
            raise ValueError(
                f"{type(self).__name__} has one noise level for the whole batch; time_shift_scope='sample' "
                "is offered by the DDIM, DDPM and flow-matching schedulers."
            )
        scaling = c.get("epsilon_scaling", 0.0)
        if not is_real(scaling) or scaling <= -1:
            raise ValueError(f"epsilon_scaling must be a number above -1, got {scaling!r}.")
        self._check_family()
        self._begin([])

    def _check_window_option(self, window: Any) -> None:
        if not isinstance(window, int) or isinstance(window, bool) or window < 0:
            raise ValueError(f"time_shift_window must be 'auto' or a whole number >= 0, got {window!r}.")

    def _check_family(self) -> None:
        """Options that do not fit this family of schedulers raise here."""

    def _largest_time(self) -> float:
        return self.config.num_train_timesteps

    def _cutoff(self) -> float:
        c = self.config
        return 0.3 * c.num_train_timesteps if c.time_shift_cutoff == AUTO else c.time_shift_cutoff

    # -- the run -------------------------------------------------------------------------------------------

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """The parent's, and a fresh start: no label outlives it."""
        super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
        self._begin(self.timesteps.tolist())
        self._check_window()

    def _begin(self, schedule: list[Any]) -> None:
        """The state of a run over `schedule`, the network's times as they are before any shift."""
        self._schedule = schedule
        self._position: int | None = None
        self._label: Tensor | None = None
        self._delivered = True
        self._off = False
        self.time_shift_trace: list[Shift] = []

    def _check_window(self) -> None:
        window = self.config.time_shift_window
        if window == AUTO or window < 2:
            return
        strides = [self._stride(i) for i in range(len(self._schedule) - 1) if self._may_shift(i)]
        if strides and window // 2 >= min(strides):
            raise ValueError(
                f"time_shift_window={window} reaches {window // 2} timesteps to each side, but two "
                f"neighbours of this grid are {min(strides):g} apart: labels would get out of order. At most "
                f"{int(min(strides))}, half a stride to each side, is sensible."
            )
        if strides and window // 2 > min(strides) / 2:
            warnings.warn(
                f"time_shift_window={window} reaches more than half a stride ({min(strides):g}) to each "
                "side; labels that far up feed on themselves and samples may diverge.",
                stacklevel=3,
            )

    def _begun_at(self, i: int) -> int | None:
        """The entry where the solver step that call `i` completes began; None if it completes none."""
        return i

    def _stride(self, i: int) -> float:
        """The smaller of the strides before and after the state that call `i` produces."""
        begun = self._begun_at(i)
        assert begun is not None
        before = self._schedule[begun] - self._schedule[i + 1]
        return (
            min(before, self._schedule[i + 1] - self._schedule[i + 2])
            if i + 2 < len(self._schedule)
            else before
        )

    def _may_shift(self, i: int) -> bool:
        """Whether the state that call `i` produces may be shifted: not the last one, and above the
        cut-off.
        """
        begun = self._begun_at(i)
        return (
            self.config.time_shift_window != 0
            and not self._off
            and begun is not None
            and i + 1 < len(self._schedule)
            and self._schedule[begun] > self._cutoff()
        )

    def _half_window(self, i: int) -> int:
        window = self.config.time_shift_window
        return round(0.2 * self._stride(i)) if window == AUTO else window // 2

    def _locate(self, timestep: Any) -> int:
        """The entry that this call of `step` is for; notices a pipeline that did not show the label to the
        network.

        Raises:
            RuntimeError: `set_timesteps` was not called, or the run is over.
            ValueError: at a run's first step, a timestep that is not on its grid.
        """
        if not self._schedule:
            raise RuntimeError(f"{type(self).__name__}.step was called before set_timesteps.")
        if self._position is None:
            begin = getattr(self, "begin_index", None)
            value = (
                begin if begin is not None else timestep.item() if isinstance(timestep, Tensor) else timestep
            )
            if begin is None and value not in self._schedule:
                raise ValueError(
                    f"Timestep {value} is not on this run's grid ({self._schedule[0]:g} to "
                    f"{self._schedule[-1]:g}, {len(self._schedule)} entries): it belongs to another schedule."
                )
            self._position = begin if begin is not None else self._schedule.index(value)
            return self._position
        self._position += 1
        i = self._position
        if i >= len(self._schedule):
            raise RuntimeError("All steps of this run are done; call set_timesteps to start another.")
        # A view of our own tensor shows what we wrote into it, which costs no look at the value.
        if not self._is_view(timestep) and self.timesteps[i].item() != self._schedule[i]:
            value = timestep.item() if isinstance(timestep, Tensor) else timestep
            if value != self.timesteps[i].item():
                warnings.warn(
                    "The pipeline works on a copy of the timesteps, so the network sees no shifted labels; "
                    "Time-Shift is off for this run.",
                    stacklevel=3,
                )
                self._off = True
                self._forget(i)
        return i

    def _is_view(self, timestep: Any) -> bool:
        return (
            isinstance(timestep, Tensor)
            and timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr()
        )

    def _forget(self, i: int) -> None:
        """Takes back the shift of entry `i`."""
        self._label = None
        self.timesteps[i] = self._schedule[i]

    # -- labels of shape (B,), which a pipeline cannot carry: see `per_sample` -------------------------------

    def pending_timesteps(self) -> tuple[Tensor, float] | None:
        """What the network should be told for the next call, (B,), and the scheduled time it stands for."""
        if self._label is None or not self._label.ndim or self._position is None:
            return None
        self._delivered = True
        return self._times(self._label), self._schedule[self._position + 1]

    def _times(self, labels: Tensor) -> Tensor:
        """The network's times of labels."""
        return labels

    def _require_delivery(self) -> None:
        if not self._delivered:
            raise RuntimeError(
                "time_shift_scope='sample' has a label for each image, but nothing handed them to the "
                "network: run the pipeline inside `with per_sample_timesteps(pipe.unet, pipe.scheduler):`."
            )

    # -- the decision --------------------------------------------------------------------------------------

    def _measure(self, x: Tensor) -> Tensor:
        """The variance that decides: (B,) for scope "sample", else the batch's mean, 0-d."""
        variance = within_image_variance(x)
        if not bool(variance.isfinite().all()):
            raise ValueError(f"The states hold NaN or infinite values after step {self._position}.")
        return variance if self.config.time_shift_scope == "sample" else variance.mean()


class DiscreteTimeShift(TimeShift):
    """Time-Shift on a variance-preserving schedule of T training timesteps: the argmin over a window."""

    alphas_cumprod: Tensor

    def _check_family(self) -> None:
        c = self.config
        v_0 = c.time_shift_data_variance
        if c.time_shift_variance == "marginal" and abs(v_0 - 1) < 0.2 and not c.time_shift_allow_latents:
            raise ValueError(
                f"With time_shift_data_variance={v_0} a state's variance is nearly the same at every noise "
                "level, so it cannot tell the level. Set time_shift_allow_latents=True to try all the same."
            )
        if c.get("use_flow_sigmas") or c.get("prediction_type") == "flow_prediction":
            raise ValueError(
                f"{type(self).__name__} is for variance-preserving schedules; flow-matching models take "
                "TimeShiftFlowMatchEulerDiscreteScheduler."
            )

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """The parent's, and a fresh start: no label outlives it."""
        super().set_timesteps(*args, **kwargs)
        self._latents = False
        self._levels = self._variance_levels(self.alphas_cumprod.to("cpu", torch.float64))

    def _variance_levels(self, abar: Tensor) -> Tensor:
        """The variance that a state of each training timestep is expected to have, (T,) float64."""
        v_0 = self.config.time_shift_data_variance if self.config.time_shift_variance == "marginal" else 0.0
        return abar * v_0 + 1 - abar

    def _choose(self, i: int, x: Tensor) -> Tensor | None:
        """Lines 7 to 9 of Algorithm 3 for the state after call `i`, judged by `x`; None: no shift."""
        if not self._may_shift(i):
            return None
        scheduled, half = self._schedule[i + 1], self._half_window(i)
        variance = self._measure(x)
        # Level mode measures the state before the step.
        measured = self._schedule[self._begun_at(i)] if self.config.time_shift_mode == "level" else scheduled  # type: ignore[index]
        if self._looks_like_latents(variance, round(measured)):
            return None
        label = nearest_level(variance, self._levels, round(scheduled), half)
        if self._label is not None:  # labels stay in strictly decreasing order
            label = torch.minimum(label, self._label - 1)
        self.time_shift_trace.append(Shift(scheduled, label, variance))
        return label

    def _looks_like_latents(self, variance: Tensor, timestep: int) -> bool:
        """True if shifting has to stop: where v_0 is near 1, every state has variance near 1."""
        c = self.config
        if c.time_shift_variance == "noise" and not self._latents:
            # `scaled_linear` is latent diffusion's own schedule; elsewhere v_0 = (var - (1 - ᾱ)) / ᾱ tells,
            # once ᾱ is large enough for exposure bias in var not to pass for v_0.
            abar = float(self.alphas_cumprod[timestep])
            measured = abar >= 0.35 and (float(variance.mean()) - (1 - abar)) / abar > 0.8
            if measured or c.beta_schedule == "scaled_linear":
                self._latents = True
                act = "shifted all the same" if c.time_shift_allow_latents else "not shifted"
                warnings.warn(
                    "These look like the unit-variance latents of a variance-preserving model, whose "
                    "variance is about 1 at every noise level: the published rule has no information there "
                    "and always picks the upper edge of its window. States are "
                    f"{act}; time_shift_allow_latents decides.",
                    stacklevel=5,
                )
        return self._latents and not c.time_shift_allow_latents
