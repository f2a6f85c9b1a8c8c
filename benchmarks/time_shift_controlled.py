"""Time-Shift where everything is known: an exact denoiser, and exposure bias put in by hand.

The model is the ideal denoiser of a kernel-density estimate: 1500 random 16x16 crops of scikit-learn's two
photographs (average-pooled by 4), bandwidth 0.08, linear betas. DDIM runs on the grid range(0, 1000, 1000 //
N) down to alpha-bar = 1, and every step but the last lands phi sqrt(1 - alpha-bar) N(0, I) beside its target.
384 samples, cut-off 300; the distance is Fréchet's on 64 principal components of 3000 other crops. Ratios are
to DDIM from the same noise with the same errors, seed by seed.

Bars: label mode's mean ratio <= 0.85 at (phi 0.2, N 10, w 20) and <= 0.80 at (phi 0.1, N 5, w 80), level
mode's > 1.5 in both. "batch" and "sample" are the scopes: one label for all 384 images, or one for each as in
the paper.

"overhead/…": a whole sampling loop of an untrained 2.5 M UNet, 16 images 1x32x32, 10 steps, with each
Time-Shift class and with its parent in turn, both in one process; medians of the ratios of process time.

    python benchmarks/time_shift_controlled.py [quality] [overhead]        (quality: about ten minutes on a
    core)
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import mean, median
from typing import Any

import diffusers
import torch
from _networks import grey_unet
from _results import Cells
from diffusers import DDIMScheduler
from torch import Tensor

import dmkit.schedulers
from dmkit.data.exact import ExactDenoiser, GaussianMixture
from dmkit.data.photos import random_crops
from dmkit.metrics import Moments, frechet_distance
from dmkit.schedulers import per_sample_timesteps
from dmkit.schedulers.time_shift.vp import AlphaTimeShift

SEEDS, PHIS, CUTOFF, SAMPLES = (0, 1, 2), (0.0, 0.1, 0.2), 300, 384
WINDOWS = {5: (80,), 10: (20, 40), 20: (10, 20), 50: (4, 8)}
BARS = {(0.2, 10, 20): 0.85, (0.1, 5, 80): 0.80}
LEVEL_BAR = 1.5


class BiasedDDIM(DDIMScheduler):
    """DDIM with exposure bias: each step but the last ends phi sqrt(1 - alpha-bar) beside its target."""

    phi: float
    errors: torch.Generator

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        output = super().step(model_output, timestep, sample, **kwargs)
        target = int(timestep) - self.config.num_train_timesteps // self.num_inference_steps
        if target >= 0:
            sigma = (1 - float(self.schedule[target])) ** 0.5
            error = torch.randn(sample.shape, generator=self.errors, dtype=sample.dtype)
            output.prev_sample = output.prev_sample + self.phi * sigma * error
        return output

    def begin(self, phi: float, seed: int) -> None:
        """Sets the size of the errors, and their seed."""
        self.phi, self.errors = phi, torch.Generator().manual_seed(seed)
        self.schedule = self.alphas_cumprod.clone()


class BiasedTimeShiftDDIM(AlphaTimeShift, BiasedDDIM):
    """Time-Shift before the biased DDIM as `TimeShiftDDIMScheduler` is before DDIM: it sees the errors."""

    OFFERS_SAMPLE_SCOPE = True


class Experiment:
    """The model, the metric and the start noise of one seed."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        centres, _ = random_crops(1500, generator)
        reference = random_crops(3000, generator)[0].flatten(1).double()
        self.seed = seed
        self.mixture = GaussianMixture(centres, bandwidth=0.08)
        self.model = ExactDenoiser(self.mixture, DDIMScheduler().alphas_cumprod)
        self.noise = torch.randn(SAMPLES, 3, 16, 16, generator=generator)
        self.mean = reference.mean(0)
        self.components = torch.linalg.eigh((reference - self.mean).T @ (reference - self.mean))[1][:, -64:]
        self.reference = Moments.of(self.project(reference))

    def project(self, images: Tensor) -> Tensor:
        return (images.flatten(1).double() - self.mean) @ self.components

    @torch.no_grad()
    def distance(self, phi: float, steps: int, **settings: Any) -> float:
        """The distance of what DDIM makes, with Time-Shift if there are settings."""
        scheduler = (BiasedTimeShiftDDIM if settings else BiasedDDIM)(clip_sample=False, **settings)
        scheduler.begin(phi, seed=1000 + self.seed)
        scheduler.set_timesteps(steps)
        labels = settings.get("time_shift_scope") == "sample" and settings["time_shift_mode"] == "label"
        x = self.noise
        with per_sample_timesteps(self.model, scheduler) if labels else nullcontext():
            for t in scheduler.timesteps:
                x = scheduler.step(self.model(x, t).sample, t, x).prev_sample
        return frechet_distance(Moments.of(self.project(x)), self.reference)


def options(window: int, mode: str, scope: str) -> dict[str, Any]:
    """Time-Shift's settings. Crops are no latents; at phi 0.2 the injected errors can look like them."""
    return {
        "time_shift_window": window,
        "time_shift_cutoff": CUTOFF,
        "time_shift_mode": mode,
        "time_shift_scope": scope,
        "time_shift_allow_latents": True,
    }


def ratios(
    cells: Cells, phi: float, steps: int, window: int, mode: str, scope: str, experiments: list[Experiment]
) -> dict[str, Any]:
    """Distances with Time-Shift and their ratios to DDIM's, one of each seed."""
    plain = cells.once(
        f"phi={phi}/N={steps}/ddim",
        lambda: {"distance": [round(e.distance(phi, steps), 3) for e in experiments]},
    )
    shifted = [e.distance(phi, steps, **options(window, mode, scope)) for e in experiments]
    of_seed = [ours / theirs for ours, theirs in zip(shifted, plain["distance"], strict=True)]
    figures: dict[str, Any] = {
        "distance": [round(d, 3) for d in shifted],
        "ratio": [round(r, 3) for r in of_seed],
        "mean_ratio": round(mean(of_seed), 3),
    }
    if bar := BARS.get((phi, steps, window)):
        met = figures["mean_ratio"] <= bar if mode == "label" else figures["mean_ratio"] > LEVEL_BAR
        figures["bar"] = {"is": f"<= {bar}" if mode == "label" else f"> {LEVEL_BAR}", "met": met}
    return figures


def quality(cells: Cells) -> None:
    experiments = [Experiment(seed) for seed in SEEDS]
    grid = [(phi, steps, w) for phi in PHIS for steps, windows in WINDOWS.items() for w in windows]
    for phi, steps, window in sorted(grid, key=lambda setting: setting not in BARS):
        for mode in ("label", "level"):
            for scope in ("batch", "sample"):
                setting = (phi, steps, window, mode, scope)
                cells.once(
                    f"phi={phi}/N={steps}/w={window}/{mode}/{scope}",
                    lambda s=setting: ratios(cells, *s, experiments),
                )


def run(scheduler: Any, network: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> float:
    """Process time of a sampling loop, in seconds."""
    begun = time.process_time()
    scheduler.set_timesteps(steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)  # flow matching has neither
    for t in scheduler.timesteps:
        x = scheduler.step(network(scale(x, t), t), t, x).prev_sample
    return time.process_time() - begun


@torch.no_grad()
def overhead(name: str, repetitions: int = 12, steps: int = 10) -> dict[str, Any]:
    """A Time-Shift class's loop over its parent's, in turn; and what a step costs more, without a network."""
    unet = grey_unet(32).eval()
    noise = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = getattr(dmkit.schedulers, name), getattr(diffusers, name.removeprefix("TimeShift"))
    settings = {"skip_prk_steps": True} if "PNDM" in name else {}
    # The states of an untrained network must not turn the shift off.
    latents = {"time_shift_allow_latents": True} if "time_shift_allow_latents" in ours.OPTIONS else {}
    pair = theirs(**settings), ours(**settings, **latents)
    rest = noise.clone()

    def timed(network: Callable[[Tensor, Tensor], Tensor], times: int) -> list[list[float]]:
        """(plain, shifted) seconds; who goes first alternates."""
        pairs = []
        for k in range(times):
            order = (0, 1) if k % 2 else (1, 0)
            seconds = {which: run(pair[which], network, noise, steps) for which in order}
            pairs.append([seconds[0], seconds[1]])
        return pairs

    timed(lambda x, _: rest, 5)  # warm
    alone = [median(column) for column in zip(*timed(lambda x, _: rest, 20 * repetitions), strict=True)]
    timed(lambda x, t: unet(x, t).sample, 1)
    whole = timed(lambda x, t: unet(x, t).sample, repetitions)
    loop = median(plain for plain, _ in whole)
    return {
        "shifted_states": len(pair[1].time_shift_trace),
        "loop_s": round(loop, 3),
        "extra_ms_per_step": round(1000 * (alone[1] - alone[0]) / steps, 3),
        "extra_share_of_loop": round((alone[1] - alone[0]) / loop, 4),
        "median_ratio_of_loops": round(median(shifted / plain for plain, shifted in whole), 4),
    }


def main() -> None:
    parts = sys.argv[1:] or ["quality", "overhead"]
    torch.set_num_threads(1)
    cells = Cells(
        "time_shift_controlled",
        {
            "what": __doc__.strip().splitlines()[0],
            "seeds": SEEDS,
            "samples": SAMPLES,
            "cutoff": CUTOFF,
            "crops": {"centres": 1500, "reference": 3000, "size": 16, "pool": 4, "bandwidth": 0.08},
            "principal_components": 64,
        },
    )
    if "quality" in parts:
        quality(cells)
    if "overhead" in parts:
        for name in sorted(n for n in dmkit.schedulers.__all__ if re.fullmatch("TimeShift.*Scheduler", n)):
            cells.once(f"overhead/{name}", lambda n=name: overhead(n))


if __name__ == "__main__":
    main()
