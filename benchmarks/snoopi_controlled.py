"""PG-SB where the ideal answer is known: a one-step student of four prompts in two dimensions.

Each prompt has two Gaussian modes (a ring of radius 2, standard deviation 0.15), so the teacher's noise
prediction is exact, with and without guidance. The fake teacher is an MLP, trained beside the student. The
distance is the energy distance of 500 samples a prompt to the true ones, every 50 of 2,000 steps; what counts
is its mean over the second half. Fixed kappa = 4.5 is SwiftBrush's; U(low, high) is PG-SB's random scale.

Bar, of means over the seeds: U(0.5, 4) at most 0.85 of fixed 4.5.

    python benchmarks/snoopi_controlled.py      (five minutes on a core)
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import torch
from _results import RESULTS, Cells
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dmkit.distillation import Kappa, Process, fake_loss, guided, vsd_gradient, vsd_loss
from dmkit.training.randomness import Draws

SEEDS, STEPS, PRETRAINING, BATCH, EVERY = (0, 1, 2, 3), 2000, 1200, 256, 50
KAPPAS = {"4.5": (4.5,), "2.25": (2.25,), "1": (1.0,), "U(0.5, 3)": (0.5, 3.0), "U(0.5, 4)": (0.5, 4.0)}
BAR = 0.85
DEVIATION, PROMPTS, NOTHING = 0.15, 4, 4
ANGLES = torch.arange(8) * math.pi / 4
MODES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)  # prompt y has modes y and y + 4
FREQUENCIES = torch.exp(torch.linspace(0, 5, 8))


class MLP(nn.Module):
    """(B, features) and a class -> (B, 2)."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(classes, 16)
        widths = (features + 16, 64, 64, 64)
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(64, 2))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.net(torch.cat([x, self.embedding(label)], dim=1))


def exact(process: Process, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The noise that a perfect teacher predicts: of prompt y, or of all prompts together."""
    alpha, sigma = process.at(t, x)
    centres = MODES.expand(len(x), 8, 2) if y is None else torch.stack([MODES[y], MODES[y + 4]], dim=1)
    variance = alpha**2 * DEVIATION**2 + sigma**2
    away = x[:, None] - alpha[:, None] * centres
    weights = torch.softmax(-away.pow(2).sum(-1) / (2 * variance), dim=1)
    return sigma / variance * (weights[..., None] * away).sum(1)


def real(y: Tensor) -> Tensor:
    return MODES[y + 4 * torch.randint(2, (len(y),))] + DEVIATION * torch.randn(len(y), 2)


def energy_distance(a: Tensor, b: Tensor) -> float:
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def run(seed: int, bounds: tuple[float, ...]) -> list[float]:
    """The distance every 50 steps of one training."""
    torch.manual_seed(seed)
    kappa = Kappa.of(list(bounds))
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    process = Process(schedule)
    fake, student = MLP(18, PROMPTS + 1), MLP(2, PROMPTS)
    fake_optimizer = torch.optim.Adam(fake.parameters(), 2e-3)
    student_optimizer = torch.optim.Adam(student.parameters(), 5e-4)
    nothing = torch.full((BATCH,), NOTHING)

    def says(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        angles = t[:, None] / 1000 * FREQUENCIES
        return fake(torch.cat([x, angles.sin(), angles.cos()], dim=1), label)

    def draw(z: Tensor, y: Tensor) -> Tensor:
        return 1.5 * z + student(z, y)

    def teach_fake(x0: Tensor, y: Tensor, draws: Draws) -> None:
        t, noise = draws.integers(1000, (BATCH,)), draws.normal((BATCH, 2))
        label = torch.where(draws.uniform((1,)) < 0.1, nothing, y)
        loss = fake_loss(process, says(process.noisy(x0, noise, t), t, label), x0, noise, t)
        fake_optimizer.zero_grad()
        loss.backward()
        fake_optimizer.step()

    for step in range(PRETRAINING):
        y = torch.randint(PROMPTS, (BATCH,))
        teach_fake(real(y), y, Draws(seed, step, rank=0, world=1))
    distances = []
    for step in range(1, STEPS + 1):
        draws = Draws(seed + 100, step, rank=0, world=1)
        y = draws.integers(PROMPTS, (BATCH,))
        x0 = draw(draws.normal((BATCH, 2)), y)
        t, noise = 20 + draws.integers(961, (BATCH,)), draws.normal((BATCH, 2))
        x, scale = process.noisy(x0.detach(), noise, t), kappa.draw(draws, BATCH)
        with torch.no_grad():
            frozen = guided(exact(process, x, t, y), exact(process, x, t), scale)
            learned = guided(says(x, t, y), says(x, t, nothing), scale)
            gradient = vsd_gradient(process, frozen, learned, t)
        loss = vsd_loss(x0, gradient)
        student_optimizer.zero_grad()
        loss.backward()
        student_optimizer.step()
        teach_fake(x0.detach(), y, draws)
        if step % EVERY == 0:
            with torch.no_grad():
                labels = [torch.full((500,), k) for k in range(PROMPTS)]
                found = [energy_distance(draw(torch.randn(500, 2), k), real(k)) for k in labels]
            distances.append(round(mean(found), 4))
    return distances


def plot(curves: dict[str, list[list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    steps = range(EVERY, STEPS + 1, EVERY)
    for name, runs in curves.items():
        table = torch.tensor(runs)
        (line,) = axis.plot(steps, table.mean(0), label=f"κ = {name}" if name[0] != "U" else f"κ ~ {name}")
        axis.fill_between(steps, table.amin(0), table.amax(0), color=line.get_color(), alpha=0.12)
    axis.set(xlabel="steps", ylabel="energy distance to the true samples", yscale="log")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "snoopi_controlled.png", dpi=120)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("snoopi_controlled", {"what": " ".join(__doc__.split()), "bar": BAR})
    curves: dict[str, list[list[float]]] = {name: [] for name in KAPPAS}
    for name, bounds in KAPPAS.items():
        for seed in SEEDS:
            key = f"curve/{name}/seed{seed}"
            curves[name].append(cells.once(key, lambda s=seed, b=bounds: run(s, b)))
    half = {name: [mean(curve[len(curve) // 2 :]) for curve in runs] for name, runs in curves.items()}
    fluctuation = {name: mean(stdev(c[len(c) // 2 :]) for c in runs) for name, runs in curves.items()}
    summary: dict[str, Any] = {
        name: {
            "distance": round(mean(values), 3),
            "seeds": [round(value, 3) for value in values],
            "fluctuation": round(fluctuation[name], 3),
            "of fixed 4.5": round(mean(values) / mean(half["4.5"]), 3),
        }
        for name, values in half.items()
    }
    for name, figures in summary.items():
        cells.record(f"summary/{name}", figures)
        print(name, figures)
    ratio = summary["U(0.5, 4)"]["of fixed 4.5"]
    cells.record("bar", {"ratio": ratio, "at most": BAR, "met": ratio <= BAR})
    plot(curves)


if __name__ == "__main__":
    main()
