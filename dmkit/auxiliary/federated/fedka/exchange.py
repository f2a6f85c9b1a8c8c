"""How models travel between clients and server: not at all, or between real processes.

The clients' code is the same for both, and so are its results: every random number is a function of the seed,
the client and the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .functions import State


def pack(state: State, samples: int, variance: float) -> dict[str, Tensor]:
    """What a client sends after a round: its network, its number of rows, the variance of its features."""
    about = torch.tensor([float(samples), variance], dtype=torch.float64)
    return {**{f"w.{name}": value for name, value in state.items()}, "about": about}


def unpack(message: State) -> tuple[dict[str, Tensor], float, float]:
    """The arguments of `pack`."""
    samples, variance = message["about"].tolist()
    return {name[2:]: value for name, value in message.items() if name != "about"}, samples, variance


class Exchange:
    """All clients and the server in this process.

    Attributes:
        rank: this process, of `size`; the first one is the server, too.
        size: number of processes.
    """

    rank, size = 0, 1

    def own(self, clients: int) -> list[int]:
        """The clients that live in this process, of so many in all.

        Raises:
            ValueError: a process that would have none.
        """
        if not self.size <= clients:
            raise ValueError(f"{clients} clients cannot be shared by {self.size} processes.")
        return list(range(self.rank, clients, self.size))

    def collect(self, mine: Mapping[int, State], clients: int) -> list[State] | None:
        """What each client sends, in their order, at the server; None elsewhere. All send tensors of the same
        names, shapes and types.
        """
        return [mine[k] for k in range(clients)]

    def spread(self, state: State) -> dict[str, Tensor]:
        """The server's tensors, everywhere; other processes pass some of the same names, shapes and types."""
        return dict(state)

    def close(self) -> None:
        """Ends the connection."""


class GlooExchange(Exchange):
    """Processes on one machine or several, through gloo of torch.distributed.

    The processes are started by whoever runs them, not by torchrun or `accelerate launch`, whose processes
    would average the gradients of all clients.

    Args:
        address: HOST:PORT at which the first process listens.
        rank: this process, from 0.
        size: number of processes, at least 2.
        timeout: seconds to wait for the others, in all that is sent too.

    Raises:
        ValueError: a rank out of range, or a process group that is there already.
    """

    def __init__(self, address: str, rank: int, size: int, timeout: float = 600):
        if size < 2 or not 0 <= rank < size:
            raise ValueError(f"Ranks are 0 to size - 1 of two processes or more, not {rank} of {size}.")
        if dist.is_initialized():
            raise ValueError("This process is in a process group already; start it without torchrun.")
        self.rank, self.size = rank, size
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )

    def collect(self, mine: Mapping[int, State], clients: int) -> list[State] | None:
        like = next(iter(mine.values()))
        if self.rank:
            for k in sorted(mine):
                for value in mine[k].values():
                    dist.send(value.detach().cpu().contiguous(), 0)
            return None
        found: list[State] = []
        for k in range(clients):
            if (owner := k % self.size) == 0:
                found.append(mine[k])
                continue
            state = {}
            for name, value in like.items():
                dist.recv(there := torch.empty_like(value, device="cpu"), owner)
                state[name] = there.to(value.device)
            found.append(state)
        return found

    def spread(self, state: State) -> dict[str, Tensor]:
        spread = {}
        for name, value in state.items():
            dist.broadcast(there := value.detach().cpu().clone().contiguous(), 0)
            spread[name] = there.to(value.device)
        return spread

    def close(self) -> None:
        dist.destroy_process_group()
