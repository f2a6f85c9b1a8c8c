"""The server: averages, votes, trains a copy of the average on the votes, and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....metrics.classification import accuracy, predict
from ....training.randomness import DataOrder, derive_seed
from .functions import State, average_states, group_effect, majority_vote, ramp
from .settings import Settings

Labelled = tuple[Tensor, Tensor]


class Server:
    """What the server has and does; it sees each client's network by itself, so secure aggregation is out.

    Args:
        network: an example of the network; copied.
        settings: of the federation.
        target: the site's inputs (N, ...), which are voted on.
        test: other inputs of the site with their labels, for measurement only.
        batch_size: of its steps.
        seed: of their order.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Settings,
        target: Tensor,
        test: Labelled | None,
        *,
        batch_size: int,
        seed: int,
    ):
        # In train mode a forward pass would move the statistics of batch norms.
        self.served, self._scratch = deepcopy(network).eval(), deepcopy(network).eval()
        self.settings, self.target, self.test = settings, target, test
        self.batch_size, self.seed = batch_size, seed

    def to(self, device: torch.device) -> None:
        """Moves everything to a device."""
        self.served.to(device)
        self._scratch.to(device)
        self.target = self.target.to(device)
        if self.test is not None:
            self.test = (self.test[0].to(device), self.test[1].to(device))

    def meet(
        self, number: int, states: Sequence[State], samples: Sequence[float], variance: Sequence[float]
    ) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """What clients start the next round from, and the round's entry in the history.

        Args:
            number: rounds done, from 1.
            states: the clients' networks.
            samples: the clients' numbers of rows.
            variance: of the clients' features, over that at the start.
        """
        base, report = self.end_round(number, states, samples)
        size = sum(value.numel() * value.element_size() for value in base.values())
        report |= {"variance": list(variance), "bytes": 2 * len(states) * size}
        return self.served.state_dict() if self.settings.feedback else base, report

    def end_round(
        self, number: int, states: Sequence[State], samples: Sequence[float]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """G as it was before voting, and what was seen; G' is `served` afterwards.

        Args:
            number: rounds done, from 1.
            states: the clients' networks.
            samples: the clients' numbers of rows.
        """
        weights = samples if self.settings.weighting == "samples" else None
        base = average_states(states, weights)
        self.served.load_state_dict(base)
        report: dict[str, Any] = {"round": number}
        if self.settings.voting or self.test is not None:
            report |= self._look_at_clients(states)
        if self.test is not None:
            report["global"] = accuracy(_logits(self.served), *self.test)
            report["group_effect"] = group_effect(report["global"], report["clients"])
        if self.settings.voting:
            report |= self._vote(number, torch.stack(report.pop("logits")))
            if self.test is not None:
                report["served"] = accuracy(_logits(self.served), *self.test)
        return base, report

    def _look_at_clients(self, states: Sequence[State]) -> dict[str, Any]:
        seen: dict[str, list[Any]] = {"logits": [], "clients": []}
        for state in states:
            self._scratch.load_state_dict(state)
            if self.settings.voting:
                seen["logits"].append(predict(_logits(self._scratch), self.target))
            if self.test is not None:
                seen["clients"].append(accuracy(_logits(self._scratch), *self.test))
        return {name: values for name, values in seen.items() if values}

    def _vote(self, number: int, logits: Tensor) -> dict[str, float]:
        """(6); leaves G' in `served`."""
        settings = self.settings
        labels, keep, agreement = majority_vote(logits, settings.vote_threshold)
        seen = {"agreement": float(agreement.mean()), "coverage": float(keep.double().mean())}
        rows = keep.nonzero()[:, 0]
        if not len(rows):
            return seen
        alpha = ramp(number / settings.rounds, settings.gamma)
        optimizer = torch.optim.Adam(self.served.parameters(), lr=settings.vote_learning_rate)
        order = DataOrder(len(rows), self.batch_size, derive_seed(self.seed, number, 7)).batches()
        self.served.train()
        with torch.enable_grad():
            for _ in range(settings.vote_steps):
                chosen = rows[next(order)]
                logits = _logits(self.served)(self.target[chosen.to(self.target.device)])
                loss = alpha * F.cross_entropy(logits.float(), labels[chosen].to(logits.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        self.served.eval()
        return seen


def _logits(network: nn.Module) -> Any:
    return lambda inputs: network.classify(network.features(inputs))  # type: ignore[operator]
