"""The state of a reversible trajectory: a double-precision master copy, its partner, its place on the grid.

A reversible sampler is exact only if its *state* is exact; the network may be as coarse as it likes, as long
as it sees the same tensor both ways. So the state lives here in float64, the pipeline is handed a copy
rounded to its own dtype, and what comes back is compared with that copy: untouched elements keep their double
precision, edited ones (callbacks, masks) are taken over and the trajectory is marked `modified`. No
comparison waits for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from .recurrence import Level

Call = tuple[int, int]
"""One network call: (level of the state, level whose timestep the network is given)."""

States: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""(state, partner) after a network call, in the state dtype; EDICT's are its coupled states."""

Watch: TypeAlias = Callable[[int, States], States]
"""Given the number of the call in its run (from 0) and what it led to; returns what the run goes on with."""


class StatePair(NamedTuple):
    """Both neighbours at the end of a run, which is what the opposite scheduler needs to run it back.

    Attributes:
        end: the state where the run ended (z_0 after sampling, z_N after inversion), in the state dtype.
        before: its partner: the state one step earlier; for EDICT the other one of the coupled pair.
        timesteps: the levels that the run covered, t_N … t_1.
    """

    end: torch.Tensor
    before: torch.Tensor | None
    timesteps: torch.Tensor


class _Start(NamedTuple):
    state: torch.Tensor
    partner: torch.Tensor | None
    timesteps: torch.Tensor | None
    num_levels: int | None


class Trajectory:
    """Mixin before a Diffusers scheduler class. Subclasses give `_calls`; `step` goes `_enter` … `_leave`."""

    timesteps: torch.Tensor
    config: Any
    _levels: list[Level] | None = None
    _grid: torch.Tensor
    _plan: list[Call]
    _master: torch.Tensor | None = None
    _partner: torch.Tensor | None = None
    _start: _Start | None = None
    _edited: torch.Tensor | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    watch: Watch | None = None

    def _calls(self, num_levels: int, resumed: bool) -> list[Call]:
        """The network calls of a run over levels num_levels … 0; `resumed`: it starts with a partner."""
        raise NotImplementedError

    def _arrange(self, end: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the network sees first, its partner) when the run starts from the pair (end, before)."""
        return before, end

    def _prepare(self, x: torch.Tensor) -> torch.Tensor:
        """What a state handed in from outside goes through; the bit-exact mode rounds it to its grid."""
        return x

    def set_start(
        self,
        end: torch.Tensor,
        before: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        *,
        num_levels: int | None = None,
    ) -> torch.Tensor:
        """Makes the next run start from these states; `a.set_start(*b.pop_pair())` runs b's trajectory back.

        Survives the pipeline's own `set_timesteps` and is used up by the first `step`.

        Args:
            end: [B, …] the state at the end of the trajectory, in any precision; kept in the state dtype.
            before: [B, …] its partner. With it the run takes up the recurrence at once and skips the first
                level's network call; without it the run begins with the usual bootstrap step.
            timesteps: the levels t_N … t_1 that the trajectory covers; must be the lowest ones of the grid
                that `set_timesteps` lays out. Without it the whole grid is covered.
            num_levels: cover the lowest `num_levels` levels only (when the timesteps are not known yet).

        Returns:
            The tensor that the pipeline must be given as its starting latents (rounded to its own dtype).

        Raises:
            ValueError: shapes differ, a state is not finite, or fewer than two levels.
        """
        if before is not None and before.shape != end.shape:
            raise ValueError(
                f"Both states must have one shape, got {tuple(end.shape)} and {tuple(before.shape)}."
            )
        for name, state in (("end", end), ("before", before)):
            if state is not None and not bool(torch.isfinite(state).all()):
                raise ValueError(f"The start state `{name}` holds NaN or infinite values.")
        count = len(timesteps) if timesteps is not None else num_levels
        if count is not None and count < 2:
            raise ValueError(f"A reversible trajectory needs at least two levels, got {count}.")
        # One memory layout for the network, whatever the states came in: kernels round by layout.
        end, before = end.contiguous(), None if before is None else before.contiguous()
        state, partner = (end, None) if before is None else self._arrange(end, before)
        self._start = _Start(state, partner, timesteps, count)
        return state

    def pop_pair(self) -> StatePair:
        """The two states at the end of the finished run; they are handed over once.

        Raises:
            RuntimeError: the run has not reached its end, or the pair was taken already.
        """
        if self._master is None or self._step_index != len(self._plan):
            raise RuntimeError(
                "pop_pair() is available once, after the last step of a run: "
                f"step {self._step_index or 0} of {len(self._plan) if self._levels else 0} was done."
            )
        pair = StatePair(self._master, self._partner, self._grid.clone())
        self._master = self._partner = None
        return pair

    @property
    def modified(self) -> bool:
        """Whether anything but `step` changed the sample on the way (reading it waits for the device)."""
        return self._edited is not None and bool(self._edited)

    @property
    def grid(self) -> torch.Tensor:
        """The levels t_N … t_1 of the run that `set_timesteps` laid out (without the calls' repetitions)."""
        return self._grid

    def _lay_out(self, levels: list[Level]) -> None:
        """Turns the parent's grid (`self.timesteps`, t_N … t_1) into this run's list of network timesteps.

        Args:
            levels: (alpha_i, sigma_i) for i = 0 … N.
        """
        start, count = self._start, len(levels) - 1
        if start is not None and start.num_levels is not None:
            count = start.num_levels
            lowest = self.timesteps[-count:].cpu()
            wanted = start.timesteps
            if wanted is not None and not torch.equal(lowest, wanted.cpu().to(lowest.dtype)):
                raise ValueError(
                    f"The start states belong to timesteps {_brief(wanted)}, but the lowest {count} here are "
                    f"{_brief(lowest)}: use the steps and the schedule that the states were made with."
                )
            if count > len(self.timesteps):
                raise ValueError(f"{count} levels asked for, but the grid has {len(self.timesteps)}.")
        self._grid = self.timesteps[-count:]
        self._levels = levels[: count + 1]
        self._plan = self._calls(count, start is not None and start.partner is not None)
        self.timesteps = self._grid[[count - network_level for _, network_level in self._plan]]
        self._master = self._partner = self._edited = self._step_index = self._begin_index = None

    def _enter(self, sample: torch.Tensor, timestep: Any) -> tuple[torch.Tensor, int]:
        """The double-precision state behind `sample` and its level.

        Raises:
            RuntimeError: before `set_timesteps`, or after the last step.
            ValueError: `sample` is not the start state that was set, or `timestep` is not on the grid.
        """
        if self._levels is None:
            raise RuntimeError("Call set_timesteps() before step().")
        if self._step_index is None:
            self._begin(sample, timestep)
        elif self._master is None or self._step_index >= len(self._plan):
            raise RuntimeError("This run has ended; call set_timesteps() before the next one.")
        else:
            same = sample == self._master.to(sample.dtype)
            edited = ~same.all()
            self._edited = edited if self._edited is None else self._edited | edited
            self._master = torch.where(same, self._master, sample.to(self._master.dtype))
        assert self._master is not None
        assert self._step_index is not None
        return self._master, self._plan[self._step_index][0]

    def _begin(self, sample: torch.Tensor, timestep: Any) -> None:
        dtype = self._state_dtype(sample.device)
        start, self._start = self._start, None
        if start is None:
            self._step_index = self._locate(timestep)
            self._master = self._prepare(sample.to(dtype))
            return
        state = start.state.to(sample.device, dtype)
        if sample.shape != state.shape or not torch.equal(sample, state.to(sample.dtype)):
            raise ValueError(
                "The pipeline did not start from the state given to set_start(): pass the tensor that it "
                f"returned as the latents, in the model's dtype. Expected shape {tuple(state.shape)}, got "
                f"{tuple(sample.shape)}."
            )
        self._step_index = 0
        self._master = self._prepare(state)
        if start.partner is not None:
            self._partner = self._prepare(start.partner.to(sample.device, dtype))

    def _leave(self, state: torch.Tensor, partner: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Keeps the new state and its partner (None: the next step has none), by way of `watch`; returns the
        state in `like`'s dtype.
        """
        assert self._step_index is not None
        if self.watch is not None and partner is not None:
            state, partner = self.watch(self._step_index, (state, partner))
        self._master = state = state.contiguous()
        self._partner = None if partner is None else partner.contiguous()
        self._step_index += 1
        return state.to(like.dtype)

    def _locate(self, timestep: Any) -> int:
        """Where a run that starts at `timestep` begins (image-to-image pipelines start in the middle)."""
        if self._begin_index is not None:
            return self._begin_index
        places = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps.device)).nonzero()
        if len(places) == 0:
            raise ValueError(f"timestep {timestep} is not on this run's grid {_brief(self.timesteps)}.")
        return int(places[0])

    def _state_dtype(self, device: torch.device) -> torch.dtype:
        if device.type == "mps" and self.config.state_dtype == "float64":
            warnings.warn(
                "MPS has no float64: the state is kept in float32, inversion is less exact.", stacklevel=4
            )
            return torch.float32
        return getattr(torch, self.config.state_dtype)


def check_steps(num_inference_steps: int | None) -> None:
    """Raises ValueError for fewer than two steps: the recurrence needs two neighbours."""
    if num_inference_steps is not None and num_inference_steps < 2:
        raise ValueError(
            f"num_inference_steps must be at least 2 for a two-step recurrence, got {num_inference_steps}."
        )


def _brief(timesteps: torch.Tensor) -> str:
    values = [round(t, 3) for t in timesteps.tolist()]
    return str(values) if len(values) <= 6 else f"[{values[0]}, {values[1]}, …, {values[-1]}] ({len(values)})"
