"""ANT where the ideal answer is known: a mixture in 16 dimensions, and what each rule costs in a step.

Data: 8 round Gaussians in R^16 (means of standard deviation 0.98, bandwidth 0.3), so that the exact noise is
known and excess loss |eps_theta - eps*|^2 can be measured. Network: 3 x 64 SiLU, 32 sinusoidal time features.
1500 AdamW steps of 2e-3 at batch 50, T = 1000 linear, 5 uniform clusters, EMA 0.995; 3000 samples by 50 DDIM
steps without clipping; the distance is the energy distance to 3000 data points.

Bars, of means over the seeds and against vanilla: energy distance uw <= 0.4x, nash <= 0.85x, pcgrad <= 1.03x;
uw's excess in the three noisiest clusters lower by 30 %, 60 % and 60 %; a lower geometric mean of the excess
for uw and nash. Only nash is clipped (1). "stratified" has the clusters but sums their losses; it sees the
same timesteps and noise as the rules do, where vanilla sees others: the paired ratio is to it. "experts" are
one network a cluster, which see five times as many examples of it. "gap" is the negative transfer gap of the
energy distance.

"cost/...": process time of a training step over the plain step, a UNet2DModel, batch 50, k = 5, in turn in
one process; medians of ratios. "nash (weighing)" is its step when weights are renewed, every 25th.

    python benchmarks/ant_controlled.py [quality] [cost]        (quality: about ten minutes on a core)
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from copy import deepcopy
from itertools import pairwise
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import torch
from _networks import grey_unet
from _results import RESULTS, Cells
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from dmkit.data.exact import ExactDenoiser, GaussianMixture, Prediction
from dmkit.sampling import sample_batch
from dmkit.training.ant.clustering import best_intervals, timestep_cost
from dmkit.training.ant.gap import cluster_losses, negative_transfer_gap
from dmkit.training.ant.plots import plot_gap
from dmkit.training.ant.sampling import ClusterTimestepSampler
from dmkit.training.arguments import TrainingArguments
from dmkit.training.denoising import DenoisingTask
from dmkit.training.rules import build_rule
from dmkit.training.trainer import Trainer

SEEDS, SAMPLES, STEPS, BATCH, K = (0, 1, 2), 3000, 1500, 50, 5
RULES = {"vanilla": "sum", "stratified": "sum", "uw": "uw", "nash": "nash", "pcgrad": "pcgrad"}
BARS = {"uw": 0.4, "nash": 0.85, "pcgrad": 1.03}
EXCESS_BARS = (0.7, 0.4, 0.4)
CLUSTERS = best_intervals(timestep_cost(1000), K)


def mixture() -> GaussianMixture:
    means = torch.randn(8, 16, 1, 1, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(means * 0.98 / means.std(), bandwidth=0.3)


class Numbers(torch.utils.data.Dataset):
    """Only how many examples a batch has; the task draws them afresh."""

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"number": i}


class TimeMLP(nn.Module):
    """A small denoiser of vectors, as images of one pixel."""

    config = SimpleNamespace(in_channels=16, sample_size=1)

    def __init__(self) -> None:
        super().__init__()
        widths = (16 + 32, 64, 64, 64)
        hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(64, 16))

    def forward(self, sample: Tensor, timestep: Tensor) -> Prediction:
        times = get_timestep_embedding(timestep.reshape(-1).expand(len(sample)), 32)
        return Prediction(self.layers(torch.cat([sample.flatten(1), times], dim=1)).view_as(sample))


class MixtureTask(DenoisingTask):
    """Denoises fresh points of the mixture."""

    def clean(self, batch: Any, step: Any) -> Tensor:
        data, count = mixture(), len(batch["number"])
        which = step.draws.integers(8, (count,))
        noise = step.draws.normal((count, 16, 1, 1))
        return data.centres[which].view_as(noise) + data.bandwidth * noise

    def save(self, folder: Any, modules: Any) -> None:
        pass


class ExcessTask(MixtureTask):
    """The squared distance to the exact noise, instead of to the drawn one."""

    def errors(self, examples: Any) -> Tensor:
        exact = ExactDenoiser(mixture(), self.scheduler.alphas_cumprod)
        ideal = exact(examples.noisy, examples.timesteps).sample
        found = self.modules["unet"](examples.noisy, examples.timesteps).sample
        return (found - ideal).pow(2).mean(dim=(1, 2, 3))


def trained(rule: str, seed: int, sampler: ClusterTimestepSampler | None) -> nn.Module:
    """The averaged network after a training."""
    torch.manual_seed(seed)
    task = MixtureTask(TimeMLP(), DDPMScheduler(clip_sample=False), sampler=sampler)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=seed,
            train_batch_size=BATCH,
            max_train_steps=STEPS,
            learning_rate=2e-3,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            adam_beta1=0.9,
            adam_weight_decay=0.0,
            max_grad_norm=1.0 if rule == "nash" else 0.0,
            use_ema=True,
            ema_max_decay=0.995,
            checkpointing_steps=0,
            save_images_epochs=0,
            save_model_epochs=0,
            report_to="none",
        )
        trainer = Trainer(task, Numbers(), arguments, rule=build_rule(rule, K))
        trainer.train()
        with trainer.averaged() as modules:
            return deepcopy(modules["unet"])


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, over all pairs."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def distance(network: nn.Module) -> float:
    """The energy distance of a network's samples."""
    samples = sample_batch(network, DDIMScheduler(clip_sample=False), 50, range(SAMPLES))
    return energy_distance(samples, mixture().sample(SAMPLES, torch.Generator().manual_seed(1)))


def excess(network: nn.Module) -> list[float]:
    """The excess loss in each cluster, from low to high noise."""
    task = ExcessTask(network, DDPMScheduler(clip_sample=False))
    batches = [{"number": range(4000)} for _ in range(2)]
    return cluster_losses(task, batches, CLUSTERS, seed=1)


def rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def run(cells: Cells, seed: int) -> None:
    """All trainings of one seed."""
    names = [*RULES, "experts"]
    if all(f"{name}/seed={seed}" in cells.read() for name in names):
        return
    experts = {i: trained("sum", seed, ClusterTimestepSampler(CLUSTERS, only=[i])) for i in range(K)}
    of_experts = [excess(expert)[i] for i, expert in experts.items()]
    cells.once(f"experts/seed={seed}", lambda: {"excess": rounded(of_experts)})
    for name, rule in RULES.items():
        sampler = None if name == "vanilla" else ClusterTimestepSampler(CLUSTERS)
        network = trained(rule, seed, sampler)
        found = excess(network)
        gaps = negative_transfer_gap(distance, network, experts, CLUSTERS)
        figures = {
            "energy_distance": round(distance(network), 4),
            "excess": rounded(found),
            "excess_gap": rounded([a - b for a, b in zip(of_experts, found, strict=True)]),
            "gap": rounded(list(gaps.values())),
        }
        cells.record(f"{name}/seed={seed}", figures)
        print(name, seed, figures, flush=True)


def summarise(cells: Cells) -> None:
    """Means over the seeds and their bars."""
    known = cells.read()

    def means(name: str, key: str) -> list[float]:
        values = [known[f"{name}/seed={seed}"][key] for seed in SEEDS]
        return [mean(column) for column in zip(*values, strict=True)]

    def distances(name: str) -> list[float]:
        return [known[f"{name}/seed={seed}"]["energy_distance"] for seed in SEEDS]

    base, base_excess = mean(distances("vanilla")), means("vanilla", "excess")
    for name in RULES:
        ratios = [a / b for a, b in zip(means(name, "excess"), base_excess, strict=True)]
        figures: dict[str, Any] = {
            "energy_distance": rounded(distances(name)),
            "ratio": round(mean(distances(name)) / base, 3),
            "paired_ratio": round(mean(distances(name)) / mean(distances("stratified")), 3),
            "excess_ratios": rounded(ratios),
            "geometric_mean_ratio": round(math.exp(mean(map(math.log, ratios))), 3),
        }
        bars = {}
        if name in BARS:
            bars[f"ratio <= {BARS[name]}"] = figures["ratio"] <= BARS[name]
        if name == "uw":
            met = all(ratio <= bar for ratio, bar in zip(ratios[2:], EXCESS_BARS, strict=True))
            bars["excess of the noisiest three <= 0.7, 0.4, 0.4"] = met
        if name in ("uw", "nash"):
            bars["geometric mean of the excess < 1"] = figures["geometric_mean_ratio"] < 1
        cells.record(f"mean/{name}", {**figures, "met": bars})
    gaps = {name: means(name, "excess_gap") for name in ("vanilla", "uw", "nash", "pcgrad")}
    plot_gap(gaps, CLUSTERS, RESULTS / "ant_controlled_gap.png", what="excess loss")


def floor() -> dict[str, float]:
    """The distance of the exact denoiser's samples, and of other data."""
    exact = ExactDenoiser(mixture(), DDPMScheduler().alphas_cumprod)
    exact.probe = nn.Parameter(torch.zeros(1))  # the sampler asks for a parameter's device
    other = mixture().sample(SAMPLES, torch.Generator().manual_seed(2))
    data = mixture().sample(SAMPLES, torch.Generator().manual_seed(1))
    return {"exact": round(distance(exact), 4), "data": round(energy_distance(other, data), 4)}


class Grey(torch.utils.data.Dataset):
    """Random images; what they show costs nothing."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"images": torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(i))}


def cost(repetitions: int = 15) -> dict[str, Any]:
    """Process time of each rule's step over the plain one's; one step of each in turn."""

    def trainer(name: str, rule: str, update_every: int | None = None) -> Trainer:
        unet = grey_unet(16)
        sampler = None if name == "plain" else ClusterTimestepSampler(CLUSTERS)
        arguments = TrainingArguments(train_batch_size=BATCH, max_train_steps=1000, report_to="none")
        task = DenoisingTask(unet, DDPMScheduler(), sampler=sampler)
        return Trainer(task, Grey(), arguments, rule=build_rule(rule, K, update_every=update_every))

    runs = {
        "plain": trainer("plain", "sum"),
        "uw": trainer("uw", "uw"),
        "pcgrad": trainer("pcgrad", "pcgrad"),
        "nash": trainer("nash", "nash"),
        "nash (weighing)": trainer("nash", "nash", update_every=1),
    }
    batch = torch.utils.data.default_collate([Grey()[i] for i in range(BATCH)])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repetitions + 2):
        for name in list(runs) if turn % 2 else list(reversed(runs)):
            runs[name].step = (
                turn + 1 if name == "nash" and turn else turn
            )  # after the first, held weights only
            begun = time.process_time()
            runs[name]._optimiser_step(iter([batch]))
            seconds[name].append(time.process_time() - begun)
    plain = seconds["plain"][2:]
    ratios = {
        name: round(median(a / b for a, b in zip(seconds[name][2:], plain, strict=True)), 3)
        for name in runs
        if name != "plain"
    }
    nash = (24 * ratios.pop("nash") + ratios.pop("nash (weighing)")) / 25
    ratios["nash"] = round(nash, 3)
    return {"plain_s": round(median(plain), 3), **ratios}


def clustering() -> dict[str, Any]:
    """Process time of the clustering of 1000 timesteps."""
    figures = {}
    for k in (5, 20):
        begun = time.process_time()
        best_intervals(timestep_cost(1000), k)
        figures[f"k={k}_s"] = round(time.process_time() - begun, 3)
    return figures


def main() -> None:
    parts = sys.argv[1:] or ["quality", "cost"]
    torch.set_num_threads(1)
    about = {"what": __doc__.strip().splitlines()[0], "seeds": SEEDS, "steps": STEPS, "samples": SAMPLES}
    cells = Cells("ant_controlled", about)
    if "quality" in parts:
        cells.once("floor", floor)
        for seed in SEEDS:
            run(cells, seed)
        summarise(cells)
    if "cost" in parts:
        cells.once("cost/step", cost)
        cells.once("cost/clustering", clustering)


if __name__ == "__main__":
    main()
