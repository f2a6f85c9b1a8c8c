"""ScaleLong where the theory holds: an MLP with 16 additive long skips learns scikit-learn's digits.

The theorems' own network: Linear(64 pixels + 32 time features -> 128), 16 pairs of blocks Linear-ReLU-Linear
(variances 2/m and 1/m), h_{i-1} = b_i(κ_i x_i + h_i), Linear to 64. ε-loss on the linear schedule of 1000
steps, AdamW 1e-3, batch 64, one stream of data and noise for all modes. The loss is the mean of steps 201 to
300; steps to a loss are of its mean over 50 steps, in runs of 450.

Bars: cs 0.7 <= 0.85 of none; ls and 1/sqrt(2) <= none; cs < ls < none; >= 1.25 times fewer steps to 0.40; the
loss of step 0 falls with Σκ².

"theorem/…": mean of ‖h_0‖²/‖x‖² over 40 random networks, m = 512, beside 1 + Σκ². "group norm/…": what κ
changes in a resnet whose first 64 channels are the backbone's, and what cs changes in whole untrained
networks. "cost/…": training steps with and without scaling in turn, in one process; medians of the ratios of
process time.

    python benchmarks/scalelong_controlled.py [digits] [theorem] [norm] [cost] [plot]    (ten minutes)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from statistics import mean, median, quantiles, stdev
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import seed_dots
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from dmkit import data
from dmkit.models import (
    LongSkipScaler,
    ScaleLongUNet2DModel,
    SkipScaling,
    UViTModel,
    apply_skip_scaling,
    remove_skip_scaling,
    stability_report,
)
from dmkit.models.skips import LongSkip
from dmkit.models.stability import growth

SEEDS, PAIRS, WIDTH, SHORT, LONG = (0, 1, 2, 3, 4, 5), 16, 128, 300, 450
MODES = {
    "none": SkipScaling("none"),
    "inv_sqrt2": SkipScaling("inv_sqrt2"),
    "ls": SkipScaling("ls"),
    "cs 0.9": SkipScaling("cs", 0.9),
    "cs 0.7": SkipScaling("cs", 0.7),
    "cs 0.5": SkipScaling("cs", 0.5),
}
COMPARED = ("none", "cs 0.7")
LEVELS = (0.5, 0.4, 0.35)
Run = tuple[list[float], dict[str, float]]


def block(width: int) -> nn.Module:
    """Variance in is variance out, in expectation."""
    first, second = nn.Linear(width, width), nn.Linear(width, width)
    for linear, gain in ((first, 2.0), (second, 1.0)):
        nn.init.normal_(linear.weight, std=math.sqrt(gain / width))
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.ReLU(), second)


class SkipMLP(nn.Module):
    """The network of the theorems, as a denoiser of vectors."""

    def __init__(self, scaling: SkipScaling, pairs: int = PAIRS, pixels: int = 64, width: int = WIDTH):
        super().__init__()
        self.entry = nn.Linear(pixels + 32, width)
        self.encoder = nn.ModuleList(block(width) for _ in range(pairs))
        self.mid_block = block(width)
        self.decoder = nn.ModuleList(block(width) for _ in range(pairs))  # b_1 … b_N
        self.exit = nn.Linear(width, pixels)
        self.skip_scaler = LongSkipScaler([width] * pairs, None, scaling)

    def long_skips(self) -> list[LongSkip]:
        return [LongSkip(WIDTH, i, b) for i, b in enumerate(self.decoder)]

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        x = self.entry(torch.cat([sample, get_timestep_embedding(timestep, 32)], dim=1))
        skips = []
        for a in self.encoder:
            x = a(x)
            skips.append(x)
        h = self.mid_block(x)
        for i in range(len(skips), 0, -1):
            # A vector is a map of one pixel: pooling leaves it as it is.
            h = self.decoder[i - 1](self.skip_scaler(i, skips[i - 1][..., None])[..., 0] + h)
        return UNet2DOutput(sample=self.exit(h))


@cache
def digits() -> Tensor:
    """1797 digits as vectors of 64 pixels in [-1, 1]: both splits, this is about optimisation."""
    parts = [data.load("digits", split=split, resolution=8) for split in ("train", "test")]
    images = torch.cat([torch.stack([part[i]["images"] for i in range(len(part))]) for part in parts])
    return images.flatten(1)


def batches(seed: int, steps: int) -> Any:
    """(x_t, t, ε) of every step; the same for every mode."""
    generator = torch.Generator().manual_seed(seed)
    scheduler = DDPMScheduler()
    images = digits()
    for _ in range(steps):
        x0 = images[torch.randint(len(images), (64,), generator=generator)]
        t = torch.randint(1000, (64,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        yield scheduler.add_noise(x0, noise, t), t, noise


def train(
    scaling: SkipScaling, seed: int, steps: int, pairs: int = PAIRS
) -> tuple[list[float], dict[str, Any]]:
    """The loss of every step, and the stability before and after."""
    torch.manual_seed(seed)
    model = SkipMLP(scaling, pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    probe = next(iter(batches(1000 + seed, 1)))

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, t, noise = batch
        return (model(x, t).sample - noise).square().mean()

    reports = {"start": stability_report(model, lambda: loss(probe))}
    losses = []
    for batch in batches(seed, steps):
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    reports["end"] = stability_report(model, lambda: loss(probe))
    figures = {
        f"{when}_{name}": round(float(value), 4)
        for when, report in reports.items()
        for name, value in (
            ("growth", report.measured_growth[0]),
            ("theorem_1", report.predicted_growth[0]),
            ("gradient", report.parameter_gradient),
            ("sensitivity", report.sensitivity),
        )
    }
    return losses, figures


def steps_to(losses: list[float], level: float, window: int = 50) -> int | None:
    """Steps until the mean of the last `window` losses is at `level`; None if it never is."""
    for step in range(window, len(losses) + 1):
        if mean(losses[step - window : step]) <= level:
            return step
    return None


def learned(scaling: SkipScaling, steps: int, pairs: int = PAIRS) -> dict[str, Any]:
    """Figures of each seed, in the order of the seeds; stability as the median over the seeds."""
    runs = [train(scaling, seed, steps, pairs) for seed in SEEDS]
    figures: dict[str, Any] = {
        "loss": [round(mean(losses[200:SHORT]), 4) for losses, _ in runs],
        "first_loss": [round(losses[0], 3) for losses, _ in runs],
        **{name: round(median(figures[name] for _, figures in runs), 3) for name in runs[0][1]},
    }
    if steps == LONG:
        reached = {f"steps_to_{level}": [steps_to(losses, level) for losses, _ in runs] for level in LEVELS}
        figures |= {**reached, "last_loss": [round(mean(losses[-100:]), 4) for losses, _ in runs]}
    return figures


def learn(cells: Cells) -> None:
    for name in ("none", "cs 0.7", "ls", "inv_sqrt2", "cs 0.5", "cs 0.9"):
        steps = LONG if name in COMPARED else SHORT
        cells.once(f"digits/N={PAIRS}/{name}", lambda n=name, s=steps: learned(MODES[n], s))
    cells.record("bars", bars(cells.read()))
    for name in COMPARED:
        cells.once(f"digits/N=6/{name}", lambda n=name: learned(MODES[n], LONG, pairs=6))


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    """The bars by the mean over the seeds, and by the median, which one odd seed does not move."""
    found = {name: cells[f"digits/N={PAIRS}/{name}"] for name in MODES}
    pairs = zip(*(found[name]["steps_to_0.4"] for name in COMPARED), strict=True)
    ratios = [plain / scaled if plain and scaled else None for plain, scaled in pairs]
    reached = [ratio for ratio in ratios if ratio is not None]
    constant = [name for name in MODES if name != "ls"]
    by_sum = sorted(constant, key=lambda name: growth(constant_coefficients(MODES[name], PAIRS))[0])
    figures: dict[str, Any] = {"times fewer steps to 0.4": [ratio and round(ratio, 2) for ratio in ratios]}
    for what, average in (("mean", mean), ("median", median)):
        loss = {name: average(found[name]["loss"]) for name in MODES}
        first = {name: average(found[name]["first_loss"]) for name in MODES}
        figures |= {
            f"{what}: cs 0.7 over none": round(loss["cs 0.7"] / loss["none"], 3),
            f"{what}: that is <= 0.85": loss["cs 0.7"] <= 0.85 * loss["none"],
            f"{what}: ls and 1/sqrt(2) <= none": max(loss["ls"], loss["inv_sqrt2"]) <= loss["none"],
            f"{what}: cs 0.7 < ls < none": loss["cs 0.7"] < loss["ls"] < loss["none"],
            f"{what}: fewer steps >= 1.25": len(reached) == len(SEEDS) and average(reached) >= 1.25,
            f"{what}: first loss falls with the sum": all(first[a] < first[b] for a, b in pairwise(by_sum)),
        }
    return figures


def constant_coefficients(scaling: SkipScaling, pairs: int) -> list[float]:
    scaler = LongSkipScaler([1] * pairs, None, scaling)
    return [scaler.coefficient(i) for i in range(1, pairs + 1)]


@torch.no_grad()
def theorem(scaling: SkipScaling, width: int = 512, networks: int = 40, pairs: int = 6) -> dict[str, Any]:
    ratios = []
    for seed in range(networks):
        torch.manual_seed(seed)
        x = h = torch.randn(1, width)
        skips = []
        for _ in range(pairs):
            h = block(width)(h)
            skips.append(h)
        h = block(width)(h)
        for kappa in reversed(constant_coefficients(scaling, pairs)):
            h = block(width)(kappa * skips.pop() + h)
        ratios.append((h.square().sum() / x.square().sum()).item())
    predicted = growth(constant_coefficients(scaling, pairs))[0]
    return {
        "measured": round(mean(ratios), 2),
        "standard_error": round(stdev(ratios) / networks**0.5, 2),
        "theorem": round(predicted, 3),
    }


@torch.no_grad()
def resnet_change(skip: int, kappa: float) -> dict[str, float]:
    """Relative change of a resnet's residual branch and of its output, when its skip is scaled."""
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=64 + skip, out_channels=64, temb_channels=None, groups=32).eval()
    h, x = torch.randn(4, 64, 8, 8), torch.randn(4, skip, 8, 8)

    def outputs(factor: float) -> tuple[Tensor, Tensor]:
        joined = torch.cat([h, factor * x], dim=1)
        whole = resnet(joined, None)
        return whole - resnet.conv_shortcut(joined), whole

    changes = [(b - a).norm() / a.norm() for a, b in zip(outputs(1.0), outputs(kappa), strict=True)]
    return {"branch": float(f"{changes[0]:.2g}"), "output": float(f"{changes[1]:.2g}")}


def unet() -> UNet2DModel:
    """A UNet of 3 levels and 1.7 M weights, with 6 long skips."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
    )


@torch.no_grad()
def network_change(model: nn.Module, scaling: SkipScaling) -> dict[str, float]:
    """Relative change of a whole untrained network's output."""
    x = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([50, 300, 600, 900])
    scaler = getattr(model, "skip_scaler", None)
    before = model.eval()(x, t).sample
    if scaler is None:
        apply_skip_scaling(model, scaling)
        after = model(x, t).sample
        remove_skip_scaling(model)
    else:
        scaler.scaling = scaling
        after = model(x, t).sample
        scaler.scaling = SkipScaling("none")
    return {"output": float(f"{(after - before).norm() / before.norm():.2g}")}


def norm(cells: Cells) -> None:
    for skip in (64, 32):
        for kappa in (0.5, 1e-3):
            cells.once(
                f"group norm/resnet 64+{skip}/kappa={kappa}", lambda s=skip, k=kappa: resnet_change(s, k)
            )
    for index in ("skip", "level"):
        scaling = SkipScaling("cs", 0.7, index=index)
        cells.once(f"group norm/unet/cs 0.7 per {index}", lambda s=scaling: network_change(unet(), s))
    cells.once(
        "group norm/uvit/cs 0.7 per skip", lambda: network_change(uvit("none"), SkipScaling("cs", 0.7))
    )


def uvit(mode: str) -> UViTModel:
    torch.manual_seed(0)
    return UViTModel(
        sample_size=32,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=8,
        num_attention_heads=4,
        attention_head_dim=32,
        skip_scaling=mode,
    )


def cost(models: dict[str, nn.Module], repetitions: int = 80) -> dict[str, Any]:
    """Median ratios of a training step's process time to that of "none", the models taking turns."""
    x = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.arange(16) * 60
    optimizers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}

    def step(name: str) -> float:
        begun = time.process_time()
        loss = (models[name].train()(x, t).sample - x).square().mean()
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        return time.process_time() - begun

    names = list(models)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    plain = []
    for k in range(repetitions + 3):
        turn = names[k % len(names) :] + names[: k % len(names)]
        seconds = {name: step(name) for name in turn}
        if k >= 3:  # warm
            plain.append(seconds["none"])
            for name in names:
                ratios[name].append(seconds[name] / seconds["none"])
    figures: dict[str, Any] = {"step_s": round(median(plain), 4), "repetitions": repetitions}
    for name in names:
        if name != "none":
            low, middle, high = quantiles(ratios[name], n=4)
            figures |= {name: round(middle, 4), f"{name}_quartiles": [round(low, 4), round(high, 4)]}
    return figures


def unets() -> dict[str, nn.Module]:
    modes: dict[str, Callable[[], nn.Module]] = {
        mode: lambda m=mode: ScaleLongUNet2DModel.from_unet(unet(), skip_scaling=m, skip_index="level")
        for mode in ("cs", "ls")
    }
    return {"none": unet(), **{mode: make() for mode, make in modes.items()}}


def plot(cells: dict[str, Any]) -> None:
    """Losses by seed; growth of random networks beside theorem 1; how far sensitivity and gradient fall."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    found = {name: cells[f"digits/N={PAIRS}/{name}"] for name in MODES}
    losses = {name: figures["loss"] for name, figures in found.items()}
    seed_dots(axes[0], losses, f"{PAIRS} skips, {SHORT} steps", "loss")
    theorem = {key.partition("/")[2]: c for key, c in cells.items() if key.startswith("theorem/")}
    for name, c in theorem.items():
        axes[1].errorbar(c["theorem"], c["measured"], 2 * c["standard_error"], fmt="o", capsize=4, label=name)
    ends = [min(c["theorem"] for c in theorem.values()), max(c["theorem"] for c in theorem.values())]
    axes[1].plot(ends, ends, color="black", linewidth=1)
    axes[1].set(title="random networks, 6 skips", xlabel="1 + Σκ² (theorem 1)", ylabel="measured ‖h₀‖²/‖x‖²")
    axes[1].legend(fontsize=8)
    for name, figures in found.items():
        axes[2].scatter(figures["start_gradient"], figures["start_sensitivity"])
        axes[2].annotate(
            name,
            (figures["start_gradient"], figures["start_sensitivity"]),
            (4, 4),
            textcoords="offset points",
        )
    axes[2].set(title="before training", xlabel="norm of the gradient", ylabel="sensitivity to input noise")
    axes[2].margins(0.2)
    figure.tight_layout()
    figure.savefig(RESULTS / "scalelong_controlled.png", dpi=110)


def main() -> None:
    parts = sys.argv[1:] or ["digits", "theorem", "norm", "cost"]
    torch.set_num_threads(1)
    cells = Cells(
        "scalelong_controlled",
        {
            "what": __doc__.strip().splitlines()[0],
            "seeds": SEEDS,
            "pairs": PAIRS,
            "width": WIDTH,
            "steps": [SHORT, LONG],
            "batch": 64,
            "optimizer": "AdamW, lr 1e-3, weight decay 0.01",
        },
    )
    if "digits" in parts:
        learn(cells)
    if "theorem" in parts:
        for name in ("none", "inv_sqrt2", "cs 0.7", "cs 0.5"):
            cells.once(f"theorem/{name}", lambda n=name: theorem(MODES[n]))
    if "norm" in parts:
        norm(cells)
    if "cost" in parts:
        cells.once("cost/unet", lambda: cost(unets()))
        cells.once("cost/uvit", lambda: cost({mode: uvit(mode) for mode in ("none", "cs", "ls")}))
    if {"digits", "theorem", "plot"} & {*parts}:
        plot(cells.read())


if __name__ == "__main__":
    main()
