"""Recorded episodes, in the layout of Minari, and the transitions that are trained on.

An episode of T steps has T + 1 observations, so that the last step before a time limit has a next state too.
A `termination` is an end with nothing after it (its value is 0); a `truncation` is the end of the recording,
and no end for the value.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from ...._files import atomic_folder, load_json, load_tensors, save_json
from ....errors import FileFormatError

FORMAT = 1


class Episode(NamedTuple):
    """One recording.

    Attributes:
        observations: (T + 1, d) float32.
        actions: (T, a) float32.
        rewards: (T,) float32.
        terminations: (T,) bool.
        truncations: (T,) bool.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor


@dataclass(frozen=True)
class Episodes:
    """Recordings, and what is known of them.

    Attributes:
        episodes: at least one.
        about: where they come from, as JSON.

    Raises:
        ValueError: none, or one whose parts do not fit.
        TypeError: discrete actions, or ends that are not boolean.
    """

    episodes: Sequence[Episode]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.episodes:
            raise ValueError("There is no episode.")
        for k, episode in enumerate(self.episodes):
            _check(k, episode)
        sizes = {(e.observations.shape[1], e.actions.shape[1]) for e in self.episodes}
        if len(sizes) > 1:
            raise ValueError(f"Episodes have observations and actions of different sizes: {sorted(sizes)}.")

    @classmethod
    def from_minari(cls, episodes: Iterable[Any], about: Mapping[str, Any] | None = None) -> Episodes:
        """Of what `minari.MinariDataset.iterate_episodes()` gives: arrays `observations` (T + 1, d),
        `actions`, `rewards`, `terminations` and `truncations`.
        """
        rows = []
        for one in episodes:
            columns = {name: torch.tensor(getattr(one, name)) for name in Episode._fields}
            if not columns["actions"].is_floating_point():
                raise TypeError(
                    f"A Gaussian policy needs actions of real numbers, not {columns['actions'].dtype}."
                )
            for name in ("observations", "actions", "rewards"):
                columns[name] = columns[name].float()
            rows.append(Episode(**columns))
        return cls(rows, about or {})

    def returns(self) -> Tensor:
        """(E,), the sum of each episode's rewards."""
        return torch.stack([episode.rewards.sum() for episode in self.episodes])

    def transitions(self) -> Transitions:
        """All steps, with the returns of the episodes that they are from."""
        return Transitions(
            torch.cat([e.observations[:-1] for e in self.episodes]),
            torch.cat([e.actions for e in self.episodes]),
            torch.cat([e.rewards for e in self.episodes]),
            torch.cat([e.observations[1:] for e in self.episodes]),
            torch.cat([e.terminations for e in self.episodes]),
            returns=self.returns(),
        )

    def save(self, folder: str | Path) -> None:
        """Writes the episodes, one after the other, as safetensors, and the rest as JSON."""
        columns = {name: torch.cat([getattr(e, name) for e in self.episodes]) for name in Episode._fields}
        lengths = [len(episode.actions) for episode in self.episodes]
        with atomic_folder(folder) as draft:
            save_file(columns, str(draft / "episodes.safetensors"))
            content = {"format": FORMAT, "lengths": lengths, "about": dict(self.about)}
            save_json(draft / "episodes.json", content)

    @classmethod
    def load(cls, folder: str | Path) -> Episodes:
        """What `save` wrote.

        Raises:
            FileFormatError: a part that is missing, damaged, or does not fit the others.
        """
        content = load_json(Path(folder) / "episodes.json")
        if content.get("format") != FORMAT:
            raise FileFormatError(
                f"{folder} has format {content.get('format')}; this version reads {FORMAT}."
            )
        columns = load_tensors(Path(folder) / "episodes.safetensors")
        try:
            lengths = content["lengths"]
            parts = {
                name: columns[name].split([n + (name == "observations") for n in lengths])
                for name in Episode._fields
            }
            rows = zip(*parts.values(), strict=True)
            return cls([Episode(*row) for row in rows], content.get("about", {}))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FileFormatError(f"{folder} holds no whole episodes: {error!r}") from error


def _check(k: int, episode: Episode) -> None:
    steps = len(episode.actions)
    for name in ("terminations", "truncations"):
        if (kind := getattr(episode, name).dtype) != torch.bool:
            raise TypeError(f"{name} of episode {k} are boolean, not {kind}.")
    if not episode.actions.is_floating_point():
        raise TypeError(f"A Gaussian policy needs actions of real numbers, not {episode.actions.dtype}.")
    if episode.observations.ndim != 2 or episode.actions.ndim != 2:
        raise ValueError(
            f"Episode {k} has observations {tuple(episode.observations.shape)} and actions "
            f"{tuple(episode.actions.shape)}; both are rows of numbers."
        )
    lengths = [len(part) for part in episode]
    if lengths != [steps + 1, *[steps] * 4] or not steps:
        raise ValueError(
            f"Episode {k} has {lengths} observations, actions, rewards, terminations and truncations; T + 1 "
            "and four times T are expected."
        )


class Transitions(Dataset):
    """Steps (s, a, r, s', whether it ended there). A batch is cut out whole; `as_it_is` collates it.

    Args:
        observations: (E, d).
        actions: (E, a), in [-1, 1] for a policy that is clipped there.
        rewards: (E,).
        next_observations: (E, d).
        terminations: bool (E,).
        returns: of the episodes, for `scale_rewards`.

    Raises:
        ValueError: shapes that do not belong together, or numbers that are not finite.
        TypeError: terminations that are not boolean, or discrete actions.
    """

    def __init__(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Tensor,
        terminations: Tensor,
        *,
        returns: Tensor | None = None,
    ):
        if observations.shape != next_observations.shape:
            raise ValueError(
                f"Observations are {tuple(observations.shape)}, the next ones "
                f"{tuple(next_observations.shape)}."
            )
        _check_ends(terminations=terminations)
        if not actions.is_floating_point():
            raise TypeError(f"A Gaussian policy needs actions of real numbers, not {actions.dtype}.")
        lengths = [len(part) for part in (observations, actions, rewards, terminations)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(f"Columns of {lengths} rows are no transitions.")
        if (ranks := [part.ndim for part in (observations, actions, rewards, terminations)]) != [2, 2, 1, 1]:
            raise ValueError(f"Transitions are (E, d), (E, a), (E,) and (E,), not of {ranks} axes.")
        self.columns = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "next_observations": next_observations,
            "terminations": terminations,
        }
        for name, column in self.columns.items():
            if not column.isfinite().all():
                raise ValueError(f"{name} hold a number that is not finite.")
        self.returns = returns
        self.mean, self.std = torch.zeros(observations.shape[1]), torch.ones(observations.shape[1])

    @classmethod
    def from_arrays(
        cls,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        terminations: Tensor,
        truncations: Tensor,
        next_observations: Tensor | None = None,
    ) -> Transitions:
        """Of flat columns as D4RL has them, row after row.

        Without next observations the next row's is taken; the last row of an episode that was only cut off
        has none, and is left out.

        Raises:
            ValueError, TypeError: as the class.
        """
        _check_ends(terminations=terminations, truncations=truncations)
        lengths = [len(part) for part in (observations, actions, rewards, terminations, truncations)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(f"Columns of {lengths} rows are no transitions.")
        ends = terminations | truncations
        keep = torch.ones_like(ends)
        if next_observations is None:
            next_observations = torch.cat([observations[1:], observations[-1:]])
            keep = ~truncations | terminations
            keep[-1] = terminations[-1]
        episode = torch.cat([torch.zeros(1, dtype=torch.int64), ends.int().cumsum(0)[:-1]])
        whole = int(ends.sum())
        sums = torch.zeros(int(episode[-1]) + 1).index_add_(0, episode, rewards.float())
        columns = (observations, actions, rewards, next_observations, terminations)
        return cls(*(column[keep] for column in columns), returns=sums[:whole] if whole else None)

    def __len__(self) -> int:
        return len(self.columns["rewards"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices)
        return {name: column[rows] for name, column in self.columns.items()}

    def normalize_states(self, epsilon: float = 1e-3) -> Transitions:
        """Takes (s - mean) / (std + epsilon) for s and s'; an agent must do the same: see `mean`, `std`.

        Raises:
            ValueError: one transition, which has no deviation.
        """
        if len(self) < 2:
            raise ValueError("One transition has no deviation to normalise states by.")
        rows = self.columns["observations"]
        mean, std = rows.mean(0), rows.std(0) + epsilon
        for name in ("observations", "next_observations"):
            self.columns[name] = (self.columns[name] - mean) / std
        self.mean, self.std = self.mean + mean * self.std, self.std * std
        return self

    def scale_actions(self, low: Tensor, high: Tensor) -> Transitions:
        """Maps actions from the box between low and high (a,) to [-1, 1].

        Raises:
            ValueError: a box without bounds, or of another number of actions.

        Warns:
            UserWarning: actions outside of it.
        """
        if not (low.isfinite().all() and high.isfinite().all() and (low < high).all()):
            raise ValueError(f"Actions need a bounded box, not from {low.tolist()} to {high.tolist()}.")
        if not low.shape == high.shape == self.columns["actions"].shape[1:]:
            raise ValueError(
                f"A box of {tuple(low.shape)} and {tuple(high.shape)} for actions "
                f"{tuple(self.columns['actions'].shape)}."
            )
        scaled = 2 * (self.columns["actions"] - low) / (high - low) - 1
        if outside := int((scaled.abs() > 1 + 1e-5).any(1).sum()):
            warnings.warn(f"{outside} actions lie outside of the box.", stacklevel=2)
        self.columns["actions"] = scaled
        return self

    def scale_rewards(self, target: float = 1000.0) -> Transitions:
        """Makes the episodes' returns span `target`. λ shifts every value by a fixed amount, so rewards must
        not be small beside that.

        Raises:
            ValueError: no episode has an end, or all have the same return.
        """
        if self.returns is None:
            raise ValueError("Rewards are scaled by the episodes' returns, but no episode has an end.")
        span = float(self.returns.max() - self.returns.min())
        if not span > 0:
            raise ValueError("Rewards are scaled by the span of the returns, but all are the same.")
        self.columns["rewards"] = self.columns["rewards"] * (target / span)
        self.returns = self.returns * (target / span)
        return self


def _check_ends(**columns: Tensor) -> None:
    for name, column in columns.items():
        if column.dtype != torch.bool:
            raise TypeError(f"{name} are boolean, not {column.dtype}.")


def as_it_is(batch: Any) -> Any:
    """The collation of `Transitions`."""
    return batch
