"""Values of states and of actions, and a Gaussian policy: small perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

LOG_STD = (-5.0, 2.0)


def _perceptron(widths: Sequence[int], layer_norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers.append(nn.Linear(a, b))
        if layer_norm:
            layers.append(nn.LayerNorm(b))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[: -2 if layer_norm else -1])  # nothing after the last linear layer


class ValueNetwork(ModelMixin, ConfigMixin):
    """V(s) by one or several networks side by side.

    Args:
        observation_dim: numbers in a state.
        hidden: widths of the hidden layers; none gives a linear function.
        layer_norm: before each ReLU.
        members: networks; with two a target is the lower of their answers.
    """

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = True,
        members: int = 1,
    ):
        super().__init__()
        if members < 1:
            raise ValueError(f"members is at least 1, not {members}.")
        widths = [observation_dim, *hidden, 1]
        self.networks = nn.ModuleList(_perceptron(widths, layer_norm) for _ in range(members))

    def forward(self, observations: Tensor) -> Tensor:
        """(B, d) -> (members, B)."""
        return torch.stack([member(observations).squeeze(-1) for member in self.networks])


class ActionValueNetwork(ModelMixin, ConfigMixin):
    """Q(s, a), as `ValueNetwork`.

    Args:
        observation_dim: numbers in a state.
        action_dim: numbers in an action.
        hidden: widths of the hidden layers.
        members: networks.
    """

    @register_to_config
    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256), members: int = 2
    ):
        super().__init__()
        widths = [observation_dim + action_dim, *hidden, 1]
        self.networks = nn.ModuleList(_perceptron(widths) for _ in range(members))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, d) and (B, a) -> (members, B)."""
        pairs = torch.cat([observations, actions], dim=1)
        return torch.stack([member(pairs).squeeze(-1) for member in self.networks])


class GaussianPolicy(ModelMixin, ConfigMixin):
    """π(a|s), a normal distribution whose deviation does not depend on the state.

    Args:
        observation_dim: numbers in a state.
        action_dim: numbers in an action, which lies in [-1, 1].
        hidden: widths of the hidden layers.
        tanh_mean: whether the mean is squashed.
    """

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (1024, 1024),
        tanh_mean: bool = False,
    ):
        super().__init__()
        self.mean = _perceptron([observation_dim, *hidden, action_dim])
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def _distribution(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(observations)
        return mean.tanh() if self.config.tanh_mean else mean, self.log_std.clamp(*LOG_STD)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, d) and (B, a) -> ln π(a|s) (B,)."""
        mean, log_std = self._distribution(observations)
        z = (actions - mean) * (-log_std).exp()
        return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def act(
        self, observations: Tensor, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, d) -> actions (B, a) in [-1, 1]: the mean, or a draw of the generator."""
        mean, log_std = self._distribution(observations)
        if not deterministic:
            mean = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        return mean.clamp(-1, 1)
