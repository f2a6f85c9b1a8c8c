"""The clients as a task of the trainer.

All clients of a process are trained together: the trainer's loss is the sum of theirs, and since no two share
a weight, the gradient of the sum is each client's own, and one Adam over all of them is one for each. A round
ends within the first step of the next one, and in `finish`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....data import Rows
from ....errors import TrainingError
from ....training.arguments import TrainingArguments
from ....training.randomness import DataOrder, derive_seed
from ....training.trainer import Step, Task, Trainer
from .exchange import Exchange, pack, unpack
from .functions import ramp, reverse_gradient
from .mmd import MultiKernelMMD
from .server import Labelled, Server
from .settings import Settings

# Features whose variance falls below this share of what it was at the start are constant: the matching is
# then perfect and the network useless.
COLLAPSED = 1e-6
WATCHED = 256


def client_losses(
    network: nn.Module,
    reference: nn.Module,
    source: Labelled,
    target: Tensor,
    settings: Settings,
    alpha: float,
    *,
    matching: bool = False,
    mmd: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The losses of one client's step.

    Args:
        network: θ_k, with `features`, `classify` and, if adversarial, `domains`.
        reference: G; only used where alignment is "global". Nothing of it changes.
        source: x_s (B, ...) and y_s (B,).
        target: x_t (B', ...).
        settings: which losses there are.
        alpha: α.
        matching: whether this is one of the `mmd_steps`, which have (3) alone.
        mmd: the discrepancy; that of the paper by default.

    Returns:
        Of "classes", "domains" and "matching" those that apply.
    """
    inputs, labels = source
    features = network.features(inputs)  # type: ignore[operator]
    losses = {}
    match = bool(settings.mmd_weight) and (matching or not settings.mmd_steps)
    local = match and settings.alignment == "local"
    adversarial = settings.adversarial and not matching
    there = network.features(target) if local or adversarial else None  # type: ignore[operator]
    if not matching:
        losses["classes"] = F.cross_entropy(network.classify(features).float(), labels)  # (1)
    if adversarial:
        both = [network.domains(reverse_gradient(z, alpha)).float() for z in (features, there)]  # type: ignore[operator]
        whose = [z.new_full((len(z),), k, dtype=torch.long) for k, z in enumerate(both)]
        losses["domains"] = sum(map(F.cross_entropy, both, whose))  # type: ignore[assignment]  # (2)
    if match:
        if not local:
            was = reference.training
            with torch.no_grad():
                there = reference.eval().features(target)  # type: ignore[operator]
            reference.train(was)
        losses["matching"] = alpha * settings.mmd_weight * (mmd or MultiKernelMMD())(features, there)  # (3)
    return losses


class Federation(Task):
    """Clients, and where they meet.

    Args:
        network: where all start; copied for each client.
        clients: (inputs, labels) of those in this process, by number.
        count: K, of all processes.
        target: the site's inputs.
        settings: of the method.
        server: the other side, at the first process; None elsewhere.
        exchange: between this process and the server.
        seed: of every draw.

    Attributes:
        history: a dict a round, at the server: `round`; with a test set the accuracies `global` (G),
            `clients`, `served` (G') and the `group_effect`; with voting `agreement` and `coverage`;
            `variance`, each client's mean variance of features of the site over that at the start; `bytes`
            sent both ways. After a resumption it starts there.
    """

    def __init__(
        self,
        network: nn.Module,
        clients: Mapping[int, Labelled],
        count: int,
        target: Tensor,
        settings: Settings,
        server: Server | None,
        exchange: Exchange,
        seed: int,
    ):
        self.modules = {f"client{k}": deepcopy(network) for k in clients}
        self.modules["global"] = deepcopy(network).requires_grad_(False)
        self.clients, self.count, self.target = dict(clients), count, target
        self.server, self.exchange, self.seed, self._settings = server, exchange, seed, settings
        self.mmd = MultiKernelMMD()
        self.history: list[dict[str, Any]] = []
        self._variance: dict[int, float] = {}
        self._ended = 0

    @property
    def network(self) -> nn.Module:
        """What clients start from: G, or with feedback G'."""
        return self.modules["global"]

    @property
    def served(self) -> nn.Module:
        """G', after voting; G without it, and in processes other than the server's."""
        return self.modules["global"] if self.server is None else self.server.served

    def prepare(self, device: torch.device) -> None:
        self.target = self.target.to(device)
        self.clients = {k: (x.to(device), y.to(device)) for k, (x, y) in self.clients.items()}
        if self.server is not None:
            self.server.to(device)

    def settings(self) -> dict[str, Any]:
        return {**asdict(self._settings), "clients": self.count}

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        settings = self._settings
        if not self._variance:
            self._watch()
            self._ended = max(0, step.number - 1) // settings.round_steps
        number, within = divmod(step.number, settings.round_steps)
        if number > self._ended:
            self.end_round(number)
        alpha = ramp(settings.progress(step.number), settings.gamma)
        losses: dict[str, Tensor] = {}
        for k, (inputs, labels) in self.clients.items():
            torch.manual_seed(derive_seed(self.seed, step.number, k, 6))  # of dropout
            rows = self._rows(len(inputs), len(batch["row"]), step.number, k, 4)
            source = (inputs[rows], labels[rows])
            target = self.target[self._rows(len(self.target), len(batch["row"]), step.number, k, 5)]
            found = client_losses(
                self.modules[f"client{k}"],
                self.modules["global"],
                source,
                target,
                settings,
                alpha,
                matching=within >= settings.local_steps,
                mmd=self.mmd,
            )
            losses |= {f"client{k}/{name}": loss for name, loss in found.items()}
        return losses

    def _rows(self, length: int, size: int, step: int, client: int, what: int) -> list[int]:
        """A batch of an order that never ends, however few rows there are."""
        return next(DataOrder(length, size, derive_seed(self.seed, client, what)).batches(step))

    def _watch(self) -> None:
        """Takes the features as they are now for those of the start."""
        self._variance = {k: self._spread(k) for k in self.clients}

    @torch.no_grad()
    def _spread(self, k: int) -> float:
        network = self.modules[f"client{k}"]
        features = network.eval().features(self.target[:WATCHED]).float()  # type: ignore[operator]
        network.train()
        return float(features.flatten(1).var(0, correction=0).mean())

    @torch.no_grad()
    def end_round(self, number: int) -> None:
        """Averages, votes, and starts all clients anew.

        Raises:
            TrainingError: a client whose features have become constant.
        """
        self._ended = number
        if not self._variance:
            self._watch()
        sent = {}
        for k, (inputs, _) in self.clients.items():
            share = self._spread(k) / max(self._variance[k], torch.finfo(torch.float32).tiny)
            if not share > COLLAPSED:
                raise TrainingError(
                    f"The features of client {k} are constant after round {number}: their variance is "
                    f"{share:.1e} of that at the start. Lower mmd_weight or the learning rate, or give the "
                    "classification more steps."
                )
            state = self.modules[f"client{k}"].state_dict()
            sent[k] = pack(state, len(inputs), share)
        collected = self.exchange.collect(sent, self.count)
        start: Mapping[str, Tensor] = self.modules["global"].state_dict()  # of these shapes, elsewhere
        if self.server is not None and collected is not None:
            start, report = self.server.meet(number, *zip(*map(unpack, collected), strict=True))
            self.history.append(report)
        start = self.exchange.spread(start)
        for module in self.modules.values():
            module.load_state_dict(start)

    def finish(self) -> None:
        """Ends the last round."""
        self.end_round(self._settings.rounds)

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        modules["global"].save_pretrained(folder / "global")  # type: ignore[operator]
        if self.server is not None:
            self.server.served.save_pretrained(folder / "served")  # type: ignore[operator]


def federate(
    network: nn.Module,
    clients: Sequence[Labelled],
    target: Tensor,
    settings: Settings,
    training: TrainingArguments,
    *,
    test: Labelled | None = None,
    exchange: Exchange | None = None,
) -> Federation:
    """Trains a federation from its first round to its last.

    Args:
        network: where all clients start; stays as it is.
        clients: (inputs (n_k, ...), int64 labels (n_k,)) of each. With several processes each one gives all
            of them and uses its own; those of others may be empty.
        target: the site's inputs (N, ...), without labels. They are sent to every client.
        settings: of the method.
        training: its `train_batch_size` is that of a client; the number of steps follows from the settings.
        test: other inputs of the site with labels. They are only measured on, nothing is chosen by them.
        exchange: between processes; all in this one by default.

    Returns:
        The trained federation: `network`, `served` and `history`.

    Raises:
        ValueError: fewer than two clients to vote, a client without rows, labels that the classifier does not
            have, batches of one row for batch norms, no head for the adversarial loss, or training arguments
            that would mix the clients up (clipping, accumulation, several processes of the trainer).
        TrainingError: constant features, or a loss that is not finite.
    """
    exchange = exchange or Exchange()
    if isinstance(target, tuple | list):
        warnings.warn("Labels of the site were given; they are not used.", stacklevel=2)
        target = target[0]
    own = {k: clients[k] for k in exchange.own(len(clients))}
    check_federation(network, own, len(clients), target, settings, training)
    server = None
    if exchange.rank == 0:
        size, seed = training.train_batch_size, training.seed
        server = Server(network, settings, target, test, batch_size=size, seed=seed)
    task = Federation(network, own, len(clients), target, settings, server, exchange, training.seed)
    steps = settings.rounds * settings.round_steps
    # Every client has an order of its own; the trainer's says only how many rows a batch has.
    rows = Rows(row=torch.arange(max(1024, training.train_batch_size)))
    trainer = Trainer(task, rows, replace(training, max_train_steps=steps))
    if trainer.accelerator.num_processes > 1:
        raise ValueError("The clients' gradients would be averaged; start processes by --processes instead.")
    trainer.train()
    task.finish()
    trainer.save()
    return task


def check_federation(
    network: nn.Module,
    own: Mapping[int, Labelled],
    count: int,
    target: Tensor,
    settings: Settings,
    training: TrainingArguments,
) -> None:
    """What `federate` asks of its arguments; `own` are the clients of this process, of `count` in all.

    Raises:
        ValueError: as `federate`.
    """
    if settings.voting and count < 2:
        raise ValueError(f"Voting needs two clients or more, not {count}.")
    if not len(target):
        raise ValueError("The site has no inputs.")
    if settings.adversarial and not hasattr(network, "domains"):
        raise ValueError(f"The adversarial loss needs {type(network).__name__}.domains.")
    if training.train_batch_size == 1 and any(isinstance(m, _BatchNorm) for m in network.modules()):
        raise ValueError("Batch norms need batches of two rows or more.")
    if training.max_grad_norm or training.gradient_accumulation_steps > 1:
        raise ValueError(
            "Clipping couples the clients, and accumulation repeats their batches: max_grad_norm=0, "
            "gradient_accumulation_steps=1."
        )
    probe = deepcopy(network).eval()
    with torch.no_grad():
        classes = probe.classify(probe.features(target[:1])).shape[-1]  # type: ignore[operator]
    for k, (inputs, labels) in own.items():
        if not len(inputs) or len(inputs) != len(labels):
            raise ValueError(f"Client {k} has {len(inputs)} inputs and {len(labels)} labels.")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(f"Client {k} has labels {low} to {high}; the classifier has {classes} classes.")
