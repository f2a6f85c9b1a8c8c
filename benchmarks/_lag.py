"""Why EF21's training loss on digits is below that of whole gradients: both workers of `ef21w.py`'s MLP in
one process, where one can look at g beside ∇f.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from _tables import few, table
from torch import Tensor

from dmkit.auxiliary.communication.ef21w.training import TRAIN, share
from dmkit.data.digits import digit_tensors
from dmkit.training.communication import TopK
from dmkit.training.networks import MLP

WORKERS, START, EVERY = 2, 2, 5
RATIOS = {"whole gradients": 1.0, "EF21, 5 %": 0.05, "EF21, 1 %": 0.01}
# Rows a worker and step, learning rate, steps: rate x steps is one number.
RUNS = {
    "32 rows, rate 0.1": (32, 0.1, 400),
    "32 rows, rate 0.025": (32, 0.025, 1600),
    "all rows, rate 0.1": (750, 0.1, 400),
    "all rows, rate 0.025": (750, 0.025, 1600),
}


class Memory:
    """gᵢ of each worker, parameter by parameter, and how many steps ago an entry was sent."""

    def __init__(self, ratio: float, parameters: list[Tensor]):
        self.top, self.sizes = TopK(ratio), [p.numel() for p in parameters]
        self.own = [[torch.zeros(n) for n in self.sizes] for _ in range(WORKERS)]
        self.age = [[torch.zeros(n) for n in self.sizes] for _ in range(WORKERS)]

    def update(self, each: list[list[Tensor]], whole: bool) -> list[Tensor]:
        """The workers' flat gradients -> g."""
        for own, age, gradients in zip(self.own, self.age, each, strict=True):
            for g, a, gradient, n in zip(own, age, gradients, self.sizes, strict=True):
                a += 1
                at = slice(None) if whole or 2 * self.top.k(n) >= n else self.top.select(gradient - g)
                g[at], a[at] = gradient[at], 0.0
        return [torch.stack(parts).mean(0) for parts in zip(*self.own, strict=True)]


def one(seed: int, ratio: float, rows: int, rate: float, steps: int) -> dict[str, float]:
    """One training.

    Returns:
        `loss` at the end. Sums over every fifth step after the start: `along`, Σ⟨g, ∇f⟩ / Σ‖∇f‖², how much
        longer than ∇f is what g does in its direction; `length`, √(Σ‖g‖² / Σ‖∇f‖²); `age`, the mean of
        steps since an entry was sent, weighted by what the entry has of ‖∇f‖².
    """
    images, labels = digit_tensors(seed)
    inputs, targets = share(images[:TRAIN], labels[:TRAIN], WORKERS)
    torch.manual_seed(seed)
    model = MLP((64, 256, 10))
    parameters = list(model.parameters())

    def gradients(x: Tensor, y: Tensor) -> list[Tensor]:
        return [g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x), y), parameters)]

    memory, generator = Memory(ratio, parameters), torch.Generator().manual_seed(seed)
    order, sums = torch.empty(0, dtype=torch.long), {"along": 0.0, "length": 0.0, "age": 0.0, "whole": 0.0}
    for step in range(steps):
        if len(order) < rows:
            order = torch.randperm(len(inputs), generator=generator)
        now, order = order[:rows], order[rows:]
        each = [gradients(inputs[now, k], targets[now, k]) for k in range(WORKERS)]
        g = memory.update(each, ratio == 1 or step < START)
        if step >= START and step % EVERY == 0:
            exact = gradients(inputs.flatten(0, 1), targets.flatten())
            ages = [torch.stack(parts).mean(0) for parts in zip(*memory.age, strict=True)]
            sums["along"] += sum(float(a @ b) for a, b in zip(g, exact, strict=True))
            sums["length"] += sum(float(a @ a) for a in g)
            sums["age"] += sum(float(a @ b.square()) for a, b in zip(ages, exact, strict=True))
            sums["whole"] += sum(float(b @ b) for b in exact)
        with torch.no_grad():
            for p, change in zip(parameters, g, strict=True):
                p -= rate * change.view_as(p)
    with torch.no_grad():
        loss = float(F.cross_entropy(model(inputs.flatten(0, 1)), targets.flatten()))
    return {
        "loss": loss,
        "along": sums["along"] / sums["whole"],
        "length": (sums["length"] / sums["whole"]) ** 0.5,
        "age": sums["age"] / sums["whole"],
    }


def lag(seed: int) -> dict[str, dict[str, float]]:
    """All of `RUNS` with all of `RATIOS`."""
    return {
        f"{run}/{name}": one(seed, ratio, *settings)
        for run, settings in RUNS.items()
        for name, ratio in RATIOS.items()
    }


def render(cells: dict[str, Any]) -> str:
    found = [c for key, c in cells.items() if key.startswith("lag/")]
    rows = []
    for key in found[0]:
        run, name = key.split("/")
        plain = f"{run}/{next(iter(RATIOS))}"
        away = mean(c[key]["loss"] for c in found) / mean(c[plain]["loss"] for c in found) - 1
        figures = [few([c[key][k] for c in found]) for k in ("loss", "along", "length", "age")]
        rows.append([run, name, figures[0], f"{away:+.1%}", *figures[1:]])
    header = ["", "", "training loss", "beside whole", "g along ∇f", "length of g", "age of entries, steps"]
    return (
        "\n## Why EF21's loss is lower\n\nThe MLP of the hook, both workers in one process, "
        f"{len(found)} seeds, rate x steps = 40. Along: Σ⟨g, ∇f⟩ / Σ‖∇f‖². Length: √(Σ‖g‖² / Σ‖∇f‖²). "
        "Age: since an entry was sent, weighted by its share of ‖∇f‖².\n\n" + table(header, rows)
    )
