"""A federation on domains of digits, in one process or several.

    python scripts/train_auxiliary.py --config scripts/recipes/fedka.yaml

With `--processes 2` every process is started by hand, with a `--rank` of its own and the first one's
`--address`; the clients are shared among them, and the result is that of one process. With `--transport
flower`, too, where the first process is the server alone, and each other one a client.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from .domains import FAMILY, SHIFTS, digit_family, shifted
from .exchange import Exchange, GlooExchange
from .federation import federate
from .networks import DomainNet
from .server import Labelled
from .settings import Settings

DATA = {"shifted": SHIFTS, "family": FAMILY}
TRANSPORTS = ("gloo", "flower")


@dataclass
class Arguments:
    """Whose data, how they are aligned, and where the clients run."""

    data: str = field(default="shifted", metadata=hint("shifted (five domains) or family (four)."))
    target: str = field(default="", metadata=hint("The site's domain; the last of the data by default."))
    clients: int = field(default=0, metadata=hint("Clients in all, equally of each domain; 0: one each."))
    rounds: int = field(default=30, metadata=hint("Rounds."))
    local_steps: int = field(default=20, metadata=hint("Steps of a client in a round."))
    mmd_steps: int = field(default=0, metadata=hint("Steps of matching alone after them; 0: in them."))
    adversarial: bool = field(default=False, metadata=hint("A domain head whose gradient is reversed."))
    mmd_weight: float = field(default=1.0, metadata=hint("Weight of the matching; 0: none."))
    alignment: str = field(default="local", metadata=hint("Features that are matched: local or global."))
    gamma: float = field(default=5.0, metadata=hint("How fast the weights of the alignment rise."))
    voting: bool = field(default=True, metadata=hint("Train the served model on what clients vote."))
    vote_threshold: float = field(default=0.0, metadata=hint("Share of clients that must agree."))
    vote_steps: int = field(default=20, metadata=hint("Steps on the votes in a round."))
    vote_learning_rate: float = field(default=3e-3, metadata=hint("Of these steps."))
    feedback: bool = field(default=False, metadata=hint("Send clients what voting made."))
    weighting: str = field(default="uniform", metadata=hint("Weights of clients: uniform or samples."))
    processes: int = field(default=1, metadata=hint("Processes that the clients are shared among."))
    transport: str = field(default="gloo", metadata=hint("Between processes: gloo or flower (an extra)."))
    rank: int = field(default=0, metadata=hint("This process, from 0."))
    address: str = field(default="127.0.0.1:29571", metadata=hint("HOST:PORT of the first process."))

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise unknown_name("--data", self.data, DATA)
        self.target = self.target or DATA[self.data][-1]
        if self.target not in DATA[self.data]:
            raise unknown_name("--target", self.target, DATA[self.data])
        domains = len(DATA[self.data]) - 1
        self.clients = self.clients or domains
        if self.clients < domains or self.clients % domains:
            raise ValueError(
                f"--clients is {self.clients}; it must be a multiple of {domains}, one domain each."
            )
        if self.transport not in TRANSPORTS:
            raise unknown_name("--transport", self.transport, TRANSPORTS)
        if self.transport == "flower" and self.processes != self.clients + 1:
            raise ValueError(
                f"--transport flower has a process for the server and one for each client: --processes "
                f"{self.clients + 1} for {self.clients} clients, not {self.processes}."
            )
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"--rank is {self.rank}; it must be 0 to {self.processes - 1}.")
        self.settings()

    def settings(self) -> Settings:
        """The method's part of the flags."""
        return Settings(**{name: getattr(self, name) for name in Settings.__dataclass_fields__})

    def load(self, seed: int) -> tuple[list[Labelled], torch.Tensor, Labelled]:
        """The clients, the site's inputs, and its test."""
        if self.data == "shifted":
            domains, target, test = shifted(self.target, seed)
        else:
            domains, target, test = digit_family(self.target, seed)
        shares = self.clients // len(domains)
        clients = [(x[k::shares], y[k::shares]) for x, y in domains for k in range(shares)]
        return clients, target, test


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains a federation; "global" and "served" are saved, each with its `config.json`.

    Returns:
        The last round's figures at the server, and all of them as "history"; nothing at other processes.
    """
    clients, target, test = arguments.load(training.seed)
    widths = (64, 128, 64) if arguments.data == "shifted" else (256, 128, 64)
    torch.manual_seed(training.seed)
    network = DomainNet(widths)
    if arguments.rank:
        # In place, so that what the script writes goes there, too.
        training.output_dir = str(Path(training.output_dir) / f"process-{arguments.rank}")
    if arguments.transport == "flower":
        return _flower(arguments, training, network, clients, target, test)
    exchange = Exchange()
    if arguments.processes > 1:
        exchange = GlooExchange(arguments.address, arguments.rank, arguments.processes)
    try:
        task = federate(
            network, clients, target, arguments.settings(), training, test=test, exchange=exchange
        )
    finally:
        exchange.close()
    return _figures(task.history)


def _flower(
    arguments: Arguments,
    training: TrainingArguments,
    network: DomainNet,
    clients: list[Labelled],
    target: torch.Tensor,
    test: Labelled,
) -> dict[str, Any]:
    from ..flower import join, serve

    settings = arguments.settings()
    common: dict[str, Any] = {"clients": len(clients), "address": arguments.address}
    if arguments.rank == 0:
        return _figures(serve(network, target, settings, training, test=test, **common).history)
    k = arguments.rank - 1
    join(network, clients[k], target, settings, training, client=k, **common)
    return {}


def _figures(history: list[dict[str, Any]]) -> dict[str, Any]:
    return {**history[-1], "history": history} if history else {}
