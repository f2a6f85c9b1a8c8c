"""FedKA in Flower, with a process for the server and one for each client.

    strategy = serve(network, target, settings, training, clients=2, address="0.0.0.0:8080")      # the server
    federation = join(network, rows, target, settings, training, client=0, clients=2, address="server:8080")

The clients run `federate` and the server `Server.meet`, as without Flower; here is what lies between. Flower
calls its clients, whereas the trainer goes through all rounds by itself, so that Adam keeps its moments:
Flower's client is in a thread beside the trainer, and the two hand each other weights. It therefore lives as
long as its process (`flwr.client.start_client`) and not for a message, as in a `ClientApp`.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from ..._files import atomic_folder
from ...errors import MissingExtraError, TrainingError
from ...metrics.classification import predict
from ...training.arguments import TrainingArguments
from .fedka.exchange import Exchange, unpack
from .fedka.federation import Federation, check_federation, federate
from .fedka.functions import State
from .fedka.server import Labelled, Server
from .fedka.settings import Settings

# A federation talks to nobody but its members, unless its user asks for that.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
try:
    from flwr.client import NumPyClient, start_client
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import History, ServerConfig, SimpleClientManager, start_server
    from flwr.server import Server as FlowerServer
    from flwr.server.strategy import FedAvg
except ImportError as error:
    raise MissingExtraError("flwr", "federated") from error

__all__ = ["FedKAClient", "FedKAStrategy", "FlowerExchange", "join", "serve"]


def to_arrays(state: State) -> list[np.ndarray]:
    """A network as Flower sends it: its tensors in their order, without names."""
    return [value.detach().cpu().numpy() for value in state.values()]


def to_state(arrays: Sequence[np.ndarray], like: State) -> dict[str, Tensor]:
    """The inverse of `to_arrays`, where the tensors of another state are.

    Raises:
        ValueError: another number of tensors, or other shapes.
    """
    shapes = [tuple(value.shape) for value in like.values()]
    if [tuple(array.shape) for array in arrays] != shapes:
        raise ValueError("What was sent is no network of this architecture.")
    pairs = zip(like.items(), arrays, strict=True)
    return {name: torch.from_numpy(array).to(value.device, value.dtype) for (name, value), array in pairs}


class FedKAStrategy(FedAvg):
    """Flower's side of the server: all clients in every round, each network kept for the votes.

    Args:
        network: where the federation starts; stays as it is.
        settings: of the method; Flower's `num_rounds` must be its `rounds`.
        target: the site's inputs (N, ...).
        clients: K.
        test: other inputs of the site with labels, for measurement only.
        batch_size: of the server's steps.
        seed: of their order.

    Attributes:
        network: G, or with feedback G'.
        served: G'.
        history: as in `Federation`.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Settings,
        target: Tensor,
        clients: int,
        *,
        test: Labelled | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ):
        super().__init__(
            min_fit_clients=clients,
            min_evaluate_clients=clients,
            min_available_clients=clients,
            initial_parameters=ndarrays_to_parameters(to_arrays(network.state_dict())),
        )
        device = PartialState().device
        self.server = Server(network, settings, target, test, batch_size=batch_size, seed=seed)
        self.server.to(device)
        self.network = deepcopy(network).requires_grad_(False).eval().to(device)
        self.clients, self.history = clients, list[dict[str, Any]]()

    @property
    def served(self) -> nn.Module:
        return self.server.served

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[Any, dict[str, Any]]:
        """(5) and (6), by the server's own code.

        Raises:
            TrainingError: a client that failed, or another set of clients than 0 to K - 1.
        """
        if failures:
            raise TrainingError(f"A client failed in round {server_round}: {failures[0]}")
        results = sorted((result for _, result in results), key=lambda result: result.metrics["client"])
        if (found := [result.metrics["client"] for result in results]) != list(range(self.clients)):
            raise TrainingError(
                f"Clients {found} answered in round {server_round}, not 0 to {self.clients - 1}."
            )
        like = self.network.state_dict()
        states = [to_state(parameters_to_ndarrays(result.parameters), like) for result in results]
        samples = [float(result.num_examples) for result in results]
        variance = [result.metrics["variance"] for result in results]
        start, report = self.server.meet(server_round, states, samples, variance)
        self.network.load_state_dict(start)
        self.history.append(report)
        figures = {name: value for name, value in report.items() if isinstance(value, float)}
        return ndarrays_to_parameters(to_arrays(start)), figures

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """After the last round only: this is how clients get what that one made."""
        last = server_round == self.server.settings.rounds
        return super().configure_evaluate(server_round, parameters, client_manager) if last else []

    def aggregate_evaluate(
        self, server_round: int, results: Any, failures: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The mean loss of G on the clients' data.

        Raises:
            TrainingError: a client that failed.
        """
        if failures:
            raise TrainingError(f"A client failed after the last round: {failures[0]}")
        return super().aggregate_evaluate(server_round, results, failures)


class FedKAClient(NumPyClient):
    """Flower's side of a client: what is sent goes to the trainer, and what the trainer made is sent back.

    Args:
        client: its number, from 0.
        network: of the federation's architecture; copied.
        rows: the client's inputs and labels, on which the last round's result is measured.
        timeout: seconds that a round may take.

    Attributes:
        received: what the server sent: states of the network; an exception in the end if it was lost.
        trained: what the trainer sends, of `pack`; None where it stopped.
    """

    def __init__(self, client: int, network: nn.Module, rows: Labelled, timeout: float = 600):
        self.client, self.rows, self.timeout = client, rows, timeout
        self.network = deepcopy(network).eval()
        self.received: queue.SimpleQueue[dict[str, Tensor] | Exception] = queue.SimpleQueue()
        self.trained: queue.SimpleQueue[State | None] = queue.SimpleQueue()

    def get_parameters(self, config: Mapping[str, Any]) -> list[np.ndarray]:
        return to_arrays(self.network.state_dict())

    def fit(self, parameters: list[np.ndarray], config: Mapping[str, Any]) -> Any:
        """A round.

        Raises:
            TrainingError: the trainer stopped, or the round took too long.
        """
        self.received.put(to_state(parameters, self.network.state_dict()))
        try:
            message = self.trained.get(timeout=self.timeout)
        except queue.Empty:
            message = None
        if message is None:
            raise TrainingError(f"Client {self.client} stopped, or did not end a round in {self.timeout} s.")
        state, samples, variance = unpack(message)
        return to_arrays(state), int(samples), {"client": self.client, "variance": variance}

    def evaluate(self, parameters: list[np.ndarray], config: Mapping[str, Any]) -> Any:
        """Loss and accuracy on the client's own rows; the end of the last round."""
        self.network.load_state_dict(to_state(parameters, self.network.state_dict()))
        self.received.put(deepcopy(self.network.state_dict()))
        inputs, labels = self.rows
        logits = predict(lambda x: self.network.classify(self.network.features(x)), inputs)  # type: ignore[operator]
        right = float((logits.argmax(1) == labels).double().mean())
        return float(F.cross_entropy(logits, labels)), len(labels), {"accuracy": right}


class FlowerExchange(Exchange):
    """The connection of one client with a Flower server, which is waited for.

    Args:
        address: HOST:PORT of the server.
        client: Flower's side of the client.
        clients: K.
        options: of `flwr.client.start_client`, such as `root_certificates`.

    Raises:
        TrainingError: nobody listens there within the client's timeout.
    """

    def __init__(self, address: str, client: FedKAClient, clients: int, **options: Any):
        self.address, self.client = address, client
        self.rank, self.size = client.client + 1, clients + 1  # the server has no client
        _wait_for(address, client.timeout)
        self._thread = threading.Thread(target=self._run, kwargs=options, daemon=True)
        self._thread.start()

    def _run(self, **options: Any) -> None:
        try:
            start_client(server_address=self.address, client=self.client.to_client(), **options)
            # Nobody reads it if the last round is over.
            self.client.received.put(ConnectionError("it ended the federation"))
        except Exception as error:
            self.client.received.put(error)

    def own(self, clients: int) -> list[int]:
        if clients != self.size - 1:
            raise ValueError(f"The Flower server waits for {self.size - 1} clients, not {clients}.")
        return [self.client.client]

    def collect(self, mine: Mapping[int, State], clients: int) -> None:
        self.client.trained.put(mine[self.client.client])

    def spread(self, state: State) -> dict[str, Tensor]:
        try:
            found = self.client.received.get(timeout=self.client.timeout)
        except queue.Empty:
            found = TimeoutError(f"nothing came in {self.client.timeout} s")
        if isinstance(found, Exception):
            raise TrainingError(f"The Flower server at {self.address} was lost: {found}") from found
        return {name: found[name].to(value.device) for name, value in state.items()}

    def close(self) -> None:
        """Ends the connection: at once if the training was cut off, which the server then hears of."""
        self.client.trained.put(None)
        self._thread.join(timeout=60)


def _wait_for(address: str, timeout: float) -> None:
    """Until somebody listens; Flower's client would not wait for its server."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise TrainingError(f"No Flower server at {address} after {timeout} s: {error}") from error
        time.sleep(0.2)


class _Server(FlowerServer):
    """Flower's, which would not let its clients go where a round raises, and would wait for them for ever."""

    error: Exception | None = None

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[Any, float]:
        try:
            return super().fit(num_rounds, timeout)
        except Exception as error:
            self.error = error
            return History(), 0.0


def serve(
    network: nn.Module,
    target: Tensor,
    settings: Settings,
    training: TrainingArguments,
    *,
    clients: int,
    address: str,
    test: Labelled | None = None,
    timeout: float = 600,
    **options: Any,
) -> FedKAStrategy:
    """Waits for all clients and leads them from the first round to the last; this process has none.

    Args:
        network: where all clients start; stays as it is.
        target: the site's inputs (N, ...).
        settings: of the method.
        training: `train_batch_size` and `seed` are those of the server's steps; "global" and "served" are
            written into `output_dir`.
        clients: K.
        address: HOST:PORT to listen at.
        test: other inputs of the site with labels, for measurement only.
        timeout: seconds that a round may take.
        options: of `flwr.server.start_server`, such as `certificates`; without them nothing is encrypted.

    Raises:
        ValueError: as `federate`.
        TrainingError: a client failed; the federation ends then.
    """
    check_federation(network, {}, clients, target, settings, training)
    strategy = FedKAStrategy(
        network,
        settings,
        target,
        clients,
        test=test,
        batch_size=training.train_batch_size,
        seed=training.seed,
    )
    config = ServerConfig(num_rounds=settings.rounds, round_timeout=timeout)
    server = _Server(client_manager=SimpleClientManager(), strategy=strategy)
    start_server(server_address=address, server=server, config=config, **options)
    if server.error is not None:
        raise server.error
    for name, module in (("global", strategy.network), ("served", strategy.served)):
        with atomic_folder(Path(training.output_dir) / name) as folder:
            module.save_pretrained(folder)  # type: ignore[operator]
    return strategy


def join(
    network: nn.Module,
    rows: Labelled,
    target: Tensor,
    settings: Settings,
    training: TrainingArguments,
    *,
    client: int,
    clients: int,
    address: str,
    timeout: float = 600,
    **options: Any,
) -> Federation:
    """Trains one client of a federation from its first round to its last.

    Args:
        network: of the server's architecture; its weights come from there.
        rows: the client's inputs (n, ...) and int64 labels (n,).
        target: the site's inputs (N, ...).
        settings: of the method, as the server's.
        training: as in `federate`. Checkpoints are neither written nor read: the others would not go back.
        client: its number, from 0 to K - 1; no two have the same.
        clients: K.
        address: HOST:PORT of the server, which is waited for.
        timeout: seconds to wait for it, and that a round may take.
        options: of `flwr.client.start_client`, such as `root_certificates`.

    Returns:
        The federation as this client has it: `network` is G.

    Raises:
        ValueError: as `federate`, or a number out of range.
        TrainingError: as `federate`, or a server that is not there, or no more.
    """
    if not 0 <= client < clients:
        raise ValueError(f"Clients are 0 to {clients - 1}, not {client}.")
    network, training = (
        deepcopy(network),
        replace(training, checkpointing_steps=0, resume_from_checkpoint=None),
    )
    check_federation(network, {client: rows}, clients, target, settings, training)
    exchange = FlowerExchange(address, FedKAClient(client, network, rows, timeout), clients, **options)
    try:
        network.load_state_dict(exchange.spread(network.state_dict()))
        nothing = (rows[0][:0], rows[1][:0])
        everyone = [rows if k == client else nothing for k in range(clients)]
        return federate(network, everyone, target, settings, training, exchange=exchange)
    finally:
        exchange.close()
