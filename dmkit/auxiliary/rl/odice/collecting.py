"""Records episodes of a controller that is disturbed by random actions:

    python -m dmkit.auxiliary.rl.odice.collecting FOLDER [--seed 0] [--episodes 80]

writes some of `Pendulum-v1`, of a swing-up controller that is disturbed at four rates, up to pure chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .agent import evaluate, gymnasium
from .data import Episode, Episodes

PENDULUM = "Pendulum-v1"
RATES = (0.3, 0.6, 0.85, 1.0)
HOLD = 5  # steps for which a random action is held: single ones would cancel out


def swing_up(observations: Tensor) -> Tensor:
    """Torques (B, 1) for observations (B, 3) of `Pendulum-v1`, cos θ, sin θ and the speed: energy is pumped
    in up to that of standing upright, then a PD controller holds it there.
    """
    cos, sin, speed = observations.float().unbind(1)
    energy = speed.square() / 6 + 5 * cos  # of a rod: 5 where it stands still, upright
    pump = 2 * torch.sign(5 - energy) * torch.where(speed >= 0, 1.0, -1.0)
    hold = -10 * torch.atan2(sin, cos) - 2 * speed
    near = (cos > 0.9) & (speed.abs() < 3)
    return torch.where(near, hold, pump).clamp(-2, 2)[:, None]


def collect(
    make: Callable[[], Any],
    controller: Callable[[Tensor], Tensor],
    episodes: int = 80,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    hold: int = HOLD,
) -> Episodes:
    """Records episodes of a disturbed controller.

    Args:
        make: makes an environment of `gymnasium` with a bounded box of actions.
        controller: observations (B, d) -> actions (B, a).
        episodes: how many; the rates take turns.
        rates: the share of stretches of `hold` steps in which one random action takes the controller's place.
        seed: of everything.
        hold: at least 1.

    Raises:
        TypeError: discrete actions.
        ValueError: numbers out of range.
        MissingExtraError: `gymnasium` is not installed.
    """
    if episodes < 1 or hold < 1 or not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(
            f"episodes {episodes} and hold {hold} are at least 1, rates {list(rates)} in [0, 1]."
        )
    environment, rows = make(), []
    if not isinstance(environment.action_space, gymnasium().spaces.Box):
        raise TypeError(f"A Gaussian policy needs a box of actions, not {environment.action_space}.")
    low, high = (torch.as_tensor(getattr(environment.action_space, end)) for end in ("low", "high"))
    generator = torch.Generator().manual_seed(seed)
    for k in range(episodes):
        state, _ = environment.reset(seed=seed * 100_000 + k)
        states, held, ended = [torch.as_tensor(state)], None, False
        steps: list[tuple[Tensor, float, bool, bool]] = []
        while not ended:
            if len(steps) % hold == 0:
                random = bool(torch.rand((), generator=generator) < rates[k % len(rates)])
                draw = low + (high - low) * torch.rand(low.shape, generator=generator)
                held = draw if random else None
            action = controller(states[-1][None])[0] if held is None else held
            state, reward, terminated, truncated, _ = environment.step(action.numpy())
            states.append(torch.as_tensor(state))
            steps.append((action, float(reward), bool(terminated), bool(truncated)))
            ended = terminated or truncated
        actions, rewards, terminations, truncations = zip(*steps, strict=True)
        ends = (torch.tensor(terminations), torch.tensor(truncations))
        rows.append(Episode(torch.stack(states).float(), torch.stack(actions), torch.tensor(rewards), *ends))
    about = {"seed": seed, "rates": list(rates), "hold": hold, "low": low.tolist(), "high": high.tolist()}
    if environment.spec is not None:
        about["environment"] = environment.spec.id
    environment.close()
    return Episodes(rows, about)


def make_pendulum() -> Any:
    """One `Pendulum-v1`."""
    return gymnasium().make(PENDULUM)


def pendulum(episodes: int = 80, seed: int = 0) -> Episodes:
    """Recordings of `Pendulum-v1`, with the mean returns of the controller and of chance for normalised
    scores.
    """
    found = collect(make_pendulum, swing_up, episodes, seed=seed)
    chance = torch.Generator().manual_seed(seed)

    def random(observations: Tensor) -> Tensor:
        return 4 * torch.rand(len(observations), 1, generator=chance) - 2

    scale = {
        "reference_return": float(evaluate(swing_up, make_pendulum, 20, seed=10_000).mean()),
        "random_return": float(evaluate(random, make_pendulum, 20, seed=10_000).mean()),
    }
    return Episodes(found.episodes, {**found.about, **scale})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dmkit.auxiliary.rl.odice.collecting")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=80)
    given = parser.parse_args(argv)
    found = pendulum(given.episodes, given.seed)
    found.save(given.folder)
    mean = float(found.returns().mean())
    print(f"{len(found.episodes)} episodes in {given.folder}, mean return {mean:.0f}; {dict(found.about)}")


if __name__ == "__main__":
    main()
