"""A policy that acts in an environment, and how well it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...._files import atomic_folder, load_json, load_whole, save_json
from ....errors import FileFormatError, MissingExtraError
from .networks import GaussianPolicy

FORMAT = 1


def gymnasium() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import gymnasium as library
    except ImportError:
        raise MissingExtraError("gymnasium", "rl") from None
    return library


class Agent:
    """A policy between an environment's own observations and actions.

    Args:
        policy: π, of normalised observations and of actions in [-1, 1].
        mean: (d,), what is subtracted from an observation.
        std: (d,), what it is then divided by.
        low: (a,), the actions that -1 stands for.
        high: (a,), those that 1 stands for.
        about: how it was trained, as JSON.
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        mean: Tensor,
        std: Tensor,
        low: Tensor,
        high: Tensor,
        about: Mapping[str, Any] | None = None,
    ):
        self.policy, self.mean, self.std = policy, mean, std
        self.low, self.high = low, high
        self.about = dict(about or {})

    def act(
        self, observations: Tensor, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """Observations (B, d) -> actions (B, a) within the box.

        Raises:
            ValueError: observations of another shape.
        """
        if observations.ndim != 2 or observations.shape[1] != len(self.mean):
            raise ValueError(f"Observations are (B, {len(self.mean)}), not {tuple(observations.shape)}.")
        device = next(self.policy.parameters()).device
        states = ((observations.float() - self.mean) / self.std).to(device)
        actions = self.policy.act(states, deterministic, generator).cpu()
        return self.low + (actions + 1) / 2 * (self.high - self.low)

    def save(self, folder: str | Path) -> None:
        """Makes `folder` anew, whole or not at all."""
        with atomic_folder(folder) as draft:
            self.policy.save_pretrained(draft / "policy")
            numbers = {name: getattr(self, name).tolist() for name in ("mean", "std", "low", "high")}
            save_json(draft / "agent.json", {"format": FORMAT, **numbers, "about": self.about})

    @classmethod
    def load(cls, folder: str | Path) -> Agent:
        """What `save` wrote.

        Raises:
            FileFormatError: a part that is missing or damaged.
        """
        content = load_json(Path(folder) / "agent.json")
        if content.get("format") != FORMAT:
            raise FileFormatError(
                f"{folder} has format {content.get('format')}; this version reads {FORMAT}."
            )
        try:
            mean, std, low, high = (torch.tensor(content[name]) for name in ("mean", "std", "low", "high"))
            policy = load_whole(GaussianPolicy, Path(folder) / "policy")
            sizes = (policy.config.observation_dim,) * 2 + (policy.config.action_dim,) * 2
            if [tuple(part.shape) for part in (mean, std, low, high)] != [(size,) for size in sizes]:
                raise ValueError(f"its scales are not of {sizes[0]} observations and {sizes[2]} actions")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{folder} holds no whole agent: {error!r}") from error
        return cls(policy, mean, std, low, high, content.get("about", {}))


def evaluate(
    act: Callable[[Tensor], Tensor], make: Callable[[], Any], episodes: int = 20, seed: int = 0
) -> Tensor:
    """Returns of whole episodes, which run side by side.

    Args:
        act: observations (B, d) -> actions (B, a); `Agent.act` is one.
        make: makes an environment of `gymnasium` that ends by itself or by a time limit.
        episodes: how many.
        seed: of the first one's start; the others count on from it.

    Returns:
        (episodes,).

    Raises:
        ValueError: no episode is asked for.
        MissingExtraError: `gymnasium` is not installed.
    """
    if episodes < 1:
        raise ValueError(f"episodes is at least 1, not {episodes}.")
    environments = gymnasium().vector.SyncVectorEnv([make] * episodes)
    states, _ = environments.reset(seed=[seed + k for k in range(episodes)])
    returns, running = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    while running.any():
        actions = act(torch.as_tensor(states)).numpy()
        states, rewards, terminated, truncated, _ = environments.step(actions)
        returns += torch.as_tensor(rewards, dtype=torch.float32) * running
        running &= ~torch.as_tensor(terminated | truncated)
    environments.close()
    return returns


def normalized_score(returns: Tensor, random: float, reference: float) -> float:
    """100 (R - R_random) / (R_reference - R_random) of the mean return, as D4RL has it.

    Raises:
        ValueError: a reference that is no better than chance.
    """
    if not reference > random:
        raise ValueError(f"The reference return {reference} must be above that of chance, {random}.")
    return 100 * (float(returns.mean()) - random) / (reference - random)
