"""Data with a known worst case: Z -> Y -> M -> X <- Y, where what M makes of Y differs between environments.

Y = Z + 0.7 e,   M = 1.5 σ(k Y + slack · ε),   X = M Y + N(0, 1)
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import torch
from torch import Tensor

from .regressions import Columns

GRAPH = nx.DiGraph([("Z", "Y"), ("Y", "M"), ("Y", "X"), ("M", "X")])
TRAINING = (2.0, 2.5, 3.0)  # k
# What M makes of Y where nothing was trained; the last is the worst for E[Y | X, do(M)].
ELSEWHERE: dict[str, Callable[[Tensor], Tensor]] = {
    "against": lambda y: 1.5 * torch.sigmoid(-3 * y),
    "0": torch.zeros_like,
    "1.5": lambda y: torch.full_like(y, 1.5),
    "inside": lambda y: 1.5 * (y.abs() < 0.7),
    "outside": lambda y: 1.5 * (y.abs() >= 0.7),
}


def environment(
    generator: torch.Generator, mechanism: Callable[[Tensor], Tensor], rows: int
) -> dict[str, Tensor]:
    """Columns Z, Y, M, X (rows,) with M = mechanism(Y)."""

    def noise() -> Tensor:
        return torch.randn(rows, generator=generator, dtype=torch.float64)

    z = noise()
    y = z + 0.7 * noise()
    m = mechanism(y).double()
    return {"Z": z, "Y": y, "M": m, "X": m * y + noise()}


def training_data(
    generator: torch.Generator, *, rows: int = 700, slack: float = 1.5
) -> tuple[Columns, Tensor]:
    """Three environments together.

    Args:
        generator: of all draws.
        rows: of each environment.
        slack: how much M varies at a given Y. At 0.3 the data do not support a worst case over M.

    Returns:
        Columns (3 · rows,), and each row's environment: 0, 1 or 2.
    """

    def follows(k: float) -> Callable[[Tensor], Tensor]:
        return lambda y: (
            1.5 * torch.sigmoid(k * y + slack * torch.randn(len(y), generator=generator, dtype=torch.float64))
        )

    made = [environment(generator, follows(k), rows) for k in TRAINING]
    columns = {name: torch.cat([one[name] for one in made]) for name in made[0]}
    return columns, torch.arange(len(TRAINING)).repeat_interleave(rows)
