"""Values and a policy from transitions: O-DICE and its relatives, IQL, and behaviour cloning.

    δ_f = r + γ (1-d) V̄(s') - V(s)        the target V̄ on s', gradient through V(s)
    δ_b = r + γ (1-d) V(s') - V̄(s)        the target on s, gradient through V(s')

    linear     (1-λ) mean V(s)
    forward    λ mean f*(δ_f)
    backward   λ η mean f*(δ_b)             projected by OrthogonalProjection
    policy     mean w (-ln π(a|s)),  w = min(weight(δ_f), 100)

    V̄ ← (1-τ) V̄ + τ V

Values and policy are one optimiser: their losses reach different weights, and w holds δ_f from before the
step of V.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import unknown_name
from ....training.rules import GradientRule, OrthogonalProjection, sum_losses
from ....training.trainer import Step, Task
from .divergences import f_conjugate
from .networks import ActionValueNetwork, GaussianPolicy, ValueNetwork

UPDATES = ("orthogonal", "semi", "true")
WEIGHTS = ("omega", "relu")
PATIENCE = 100  # steps without any weight before there is a warning


class PolicyTask(Task):
    """Behaviour cloning, and the base of tasks that weigh it.

    Args:
        policy: π.
        policy_decay: its weight decay; that of all else is 0.
    """

    def __init__(self, policy: GaussianPolicy, *, policy_decay: float = 0.0):
        self.modules: dict[str, nn.Module] = {"policy": policy}
        self.policy_decay = policy_decay
        self._tracked: dict[str, float] = {}  # module -> share by which its target follows
        self._steps = 0

    def track(self, name: str, share: float) -> None:
        """Adds a target `NAME_target` that follows a module, by this share in each step."""
        if not 0 < share <= 1:
            raise ValueError(f"tau is in (0, 1], not {share}.")
        self.modules[f"{name}_target"] = copy.deepcopy(self.modules[name]).requires_grad_(False)
        self._tracked[name] = share

    @torch.no_grad()
    def follow(self, step: Step) -> None:
        """Lets the targets follow once for every step that has been made: before the next one, so that a
        checkpoint holds them as they were.
        """
        if step.number == self._steps:
            return
        self._steps = step.number
        for name, share in self._tracked.items():
            target = self.modules[f"{name}_target"].parameters()
            for kept, new in zip(target, self.modules[name].parameters(), strict=True):
                kept.lerp_(new, share)

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        policy = list(self.modules["policy"].parameters())
        mine = {id(p) for p in policy}
        groups = [{"params": policy, "weight_decay": self.policy_decay}]
        if rest := [p for p in parameters if id(p) not in mine]:
            groups.append({"params": rest, "weight_decay": 0.0})
        return groups

    def cloning(self, batch: Mapping[str, Tensor], weights: Tensor | float = 1.0) -> Tensor:
        """The weighted loss of the policy; weights are (B,) or (members, B)."""
        return -(weights * self.modules["policy"](batch["observations"], batch["actions"])).mean()

    def rule(self) -> GradientRule:
        """How the losses become a gradient."""
        return sum_losses

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        return {"policy": self.cloning(batch)}

    def settings(self) -> dict[str, Any]:
        return {"task": type(self).__name__, "policy_decay": self.policy_decay}


def residual(batch: Mapping[str, Tensor], value: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """δ = r + γ (1-d) V(s') - V(s), of the shape that the values broadcast to."""
    return batch["rewards"] + discount * (~batch["terminations"]) * next_value - value


class ODICETask(PolicyTask):
    """O-DICE, or with other updates S-DICE (semi-gradient) and the true gradient.

    Args:
        value: V.
        policy: π.
        lam: λ in (0, 1). At 0.5 no constant is added to the values of near-deterministic data.
        eta: η, the weight of the backward loss; not negative. With 0 "orthogonal" is "semi".
        discount: γ in [0, 1].
        divergence: "pearson_chi2" or "kl".
        update: "orthogonal"; "semi", without the backward loss; or "true", the gradient of f*(δ) through both
            values, without targets.
        weight: "omega", the maximiser of the conjugate; or "relu", max(0, δ), as the authors' code has it.
        max_weight: larger weights are cut off.
        tau: τ.
        policy_decay: weight decay of π.

    Raises:
        ValueError: another name, or a number out of range.
    """

    def __init__(
        self,
        value: ValueNetwork,
        policy: GaussianPolicy,
        *,
        lam: float = 0.5,
        eta: float = 1.0,
        discount: float = 0.99,
        divergence: str = "pearson_chi2",
        update: str = "orthogonal",
        weight: str = "omega",
        max_weight: float = 100.0,
        tau: float = 0.005,
        policy_decay: float = 0.0,
    ):
        super().__init__(policy, policy_decay=policy_decay)
        for what, name, known in (("update", update, UPDATES), ("weight", weight, WEIGHTS)):
            if name not in known:
                raise unknown_name(what, name, known)
        if not 0 < lam < 1:
            raise ValueError(f"lam is in (0, 1), not {lam}.")
        if eta < 0 or not 0 <= discount <= 1 or not max_weight > 0:
            raise ValueError(
                f"eta {eta} is at least 0, discount {discount} in [0, 1], max_weight {max_weight} positive."
            )
        self.modules["value"] = value
        if update != "true":
            self.track("value", tau)
        self.lam, self.eta, self.discount, self.tau = lam, eta, discount, tau
        self.divergence, self.update, self.weight = f_conjugate(divergence), update, weight
        self.max_weight = max_weight
        self._dead = 0

    def rule(self) -> GradientRule:
        return OrthogonalProjection() if self.update == "orthogonal" else sum_losses

    def weights(self, delta: Tensor) -> Tensor:
        """Of the recorded actions, from their residuals, without a gradient."""
        delta = delta.detach()
        raw = self.divergence.ratio(delta) if self.weight == "omega" else F.relu(delta)
        return raw.clamp(max=self.max_weight)

    def residuals(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """V(s), δ_f and δ_b, each (members, B); for the true gradient both δ are the one that there is."""
        states, after = batch["observations"], batch["next_observations"]
        # One pass through the network, which processes that share a gradient ask for.
        value, next_value = self.modules["value"](torch.cat([states, after])).chunk(2, dim=1)
        if self.update == "true":
            delta = residual(batch, value, next_value, self.discount)
            return value, delta, delta
        with torch.no_grad():
            targets = self.modules["value_target"](torch.cat([states, after])).min(0).values.chunk(2)
        forward = residual(batch, value, targets[1], self.discount)
        backward = residual(batch, targets[0], next_value, self.discount)
        return value, forward, backward

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        self.follow(step)
        value, forward, backward = self.residuals(batch)
        conjugate, weights = self.divergence.conjugate, self.weights(forward)
        self._watch(weights)
        losses = {
            "linear": (1 - self.lam) * value.mean(),
            "forward": self.lam * conjugate(forward).mean(),
        }
        if self.update == "orthogonal":
            losses["backward"] = self.lam * self.eta * conjugate(backward).mean()
        return {**losses, "policy": self.cloning(batch, weights)}

    def _watch(self, weights: Tensor) -> None:
        self._dead = 0 if bool((weights > 0).any()) else self._dead + 1
        if self._dead == PATIENCE:
            warnings.warn(
                f"No action had a weight for {PATIENCE} steps: the policy learns nothing. Scale the rewards "
                'up, lower lam, or take weight="omega".',
                stacklevel=2,
            )

    def settings(self) -> dict[str, Any]:
        names = ("lam", "eta", "discount", "update", "weight", "max_weight", "tau")
        return {
            **super().settings(),
            **{name: getattr(self, name) for name in names},
            "divergence": self.divergence.name,
        }


class IQLTask(PolicyTask):
    """Implicit Q-learning (Kostrikov et al. 2022, arXiv 2110.06169), the baseline with a critic.

        V    E[|q - 1(u < 0)| u²],  u = min Q̄(s, a) - V(s)        (expectile q)
        Q    E[(r + γ (1-d) V(s') - Q(s, a))²]
        π    weights min(e^(β u), 100)

    Args:
        value: V, of one member.
        critic: Q.
        policy: π.
        expectile: q in (0, 1).
        temperature: β, for returns that span 1000 as `Transitions.scale_rewards` makes them.
        discount: γ.
        max_weight: larger weights are cut off.
        tau: share by which Q̄ follows Q.
        policy_decay: weight decay of π.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        value: ValueNetwork,
        critic: ActionValueNetwork,
        policy: GaussianPolicy,
        *,
        expectile: float = 0.7,
        temperature: float = 3.0,
        discount: float = 0.99,
        max_weight: float = 100.0,
        tau: float = 0.005,
        policy_decay: float = 0.0,
    ):
        super().__init__(policy, policy_decay=policy_decay)
        if not 0 < expectile < 1 or not temperature > 0:
            raise ValueError(f"expectile {expectile} is in (0, 1) and temperature {temperature} is positive.")
        self.modules["value"], self.modules["critic"] = value, critic
        self.track("critic", tau)
        self.expectile, self.temperature, self.discount = expectile, temperature, discount
        self.max_weight, self.tau = max_weight, tau

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        self.follow(step)
        states, actions, after = batch["observations"], batch["actions"], batch["next_observations"]
        value, next_value = self.modules["value"](torch.cat([states, after])).chunk(2, dim=1)
        with torch.no_grad():
            best = self.modules["critic_target"](states, actions).min(0).values
        u = best - value.min(0).values
        side = torch.where(u < 0, 1 - self.expectile, self.expectile)
        target = residual(batch, torch.zeros_like(best), next_value.min(0).values.detach(), self.discount)
        weights = (self.temperature * u.detach()).clamp(max=20).exp().clamp(max=self.max_weight)
        return {
            "value": (side * u.square()).mean(),
            "critic": (target - self.modules["critic"](states, actions)).square().mean(),
            "policy": self.cloning(batch, weights),
        }

    def settings(self) -> dict[str, Any]:
        names = ("expectile", "temperature", "discount", "max_weight", "tau")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}
