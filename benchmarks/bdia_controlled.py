"""BDIA where everything is known: exact denoisers on crops of real photographs and on Gaussian mixtures.

Reconstruction: the kernel-density denoiser of 16x16 crops of scikit-learn's two photographs (average-pooled
by 4, 750 crops each, bandwidth 0.08, one denoiser per photograph as its "prompt"), 64 unseen crops of each,
through an unmodified `DDPMPipeline` in float32, linear betas. Figures: PSNR (peak 2), worst absolute error,
network calls. Bars: BDIA >= 100 dB and >= 80 dB above DDIM inversion at N <= 20 with N calls.

Sampling: 64-dimensional mixtures of eight Gaussians, Stable Diffusion's betas, 64 samples; distance to a
Runge-Kutta solution of the same probability-flow ODE from the same noise, three mixtures of each kind. "rms"
is over everything; now and then a sample ends in another component than the exact one, which no small error
explains, so "median" gives the middle sample's RMS beside it. Bar: gamma = 0.5 at most half of DDIM's RMS at
N = 10 and 20.

    python benchmarks/bdia_controlled.py        (about a minute)
"""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from _results import Cells
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from dmkit.schedulers import BDIADDIMScheduler, invert, reconstruct

INVERSIONS: dict[str, dict[str, Any]] = {
    "ddim inversion": {"method": "ddim"},
    "edict": {"method": "edict"},
    "bdia 0.94": {"gamma": 0.94},
    "bdia 1": {"gamma": 1.0},
    "bdia 1 bit-exact": {"gamma": 1.0, "reversible": "bitwise"},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"gamma": 0.0},
    "bdia 0.5": {"gamma": 0.5},
    "bdia 1": {"gamma": 1.0},
    "o-belm": {"solver": "obelm"},
}
MIXTURES = {"overlapping": (0.5, 0.5), "separated": (1.0, 0.3)}  # scale of the means, standard deviation


def posterior_noise(z: Tensor, alpha: float, sigma: float, means: Tensor, spread: float) -> Tensor:
    """E[n | z] for z = alpha x + sigma n, x from equal round Gaussians; z (B, D), means (K, D)."""
    variance = (alpha * spread) ** 2 + sigma**2
    weights = torch.softmax(-torch.cdist(z, alpha * means).square() / (2 * variance), -1)
    return sigma * (z - alpha * weights @ means) / variance


class KernelDensity(torch.nn.Module):
    """The denoiser of a kernel-density estimate, with the face of a `UNet2DModel` that predicts noise."""

    def __init__(self, crops: Tensor, bandwidth: float, alphas_cumprod: Tensor):
        super().__init__()
        self.register_buffer("crops", crops.flatten(1))
        self.weight = torch.nn.Parameter(torch.zeros(1))  # what the pair's fingerprint of a model reads
        self.bandwidth, self.alphas_cumprod, self.calls = bandwidth, alphas_cumprod, 0
        self.config = SimpleNamespace(sample_size=crops.shape[-1], in_channels=crops.shape[1])
        self.dtype, self.device = crops.dtype, crops.device

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        self.calls += 1
        alpha_bar = float(self.alphas_cumprod[timestep])
        noise = posterior_noise(
            sample.flatten(1), alpha_bar**0.5, (1 - alpha_bar) ** 0.5, self.crops, self.bandwidth
        )
        return SimpleNamespace(sample=noise.view_as(sample))


def photo_crops(photo: Tensor, known: int, unseen: int, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Crops at different random places, (known, 3, size, size) and (unseen, 3, size, size), in [-1, 1]."""
    small = F.avg_pool2d(photo.float().permute(2, 0, 1)[None], 4)[0] / 127.5 - 1
    windows = small.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    places = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[places[:known]].contiguous(), windows[places[known : known + unseen]].contiguous()


def reconstruction(steps: int, options: dict[str, Any]) -> dict[str, Any]:
    from sklearn.datasets import load_sample_images

    errors, calls = [], set()
    for photo in load_sample_images().images:
        known, unseen = photo_crops(torch.tensor(photo), known=750, unseen=64, seed=0)
        scheduler = DDPMScheduler(beta_schedule="linear")
        pipe = DDPMPipeline(KernelDensity(known, 0.08, scheduler.alphas_cumprod), scheduler)
        pipe.set_progress_bar_config(disable=True)
        pair = invert(pipe, unseen, num_inference_steps=steps, **options)
        up, pipe.unet.calls = pipe.unet.calls, 0
        back = reconstruct(pipe, pair)
        calls.add((up, pipe.unet.calls))
        errors.append(back.image.double() - unseen.double())
    error = torch.cat(errors)
    mse = error.square().mean().item()
    return {
        "psnr_db": round(10 * math.log10(4 / mse), 1) if mse else None,  # None: no error at all
        "max_abs": error.abs().max().item(),
        "calls": list(calls.pop()),
    }


def probability_flow(z: Tensor, alpha: float, sigma: float, means: Tensor, spread: float) -> Tensor:
    """z carried to sigma = 0 by dw/ds = E[n | w], w = z / alpha, s = sigma / alpha, in 599 RK4 steps."""
    levels = torch.linspace(math.log(sigma / alpha), math.log(1e-4), 600, dtype=torch.float64).exp().tolist()

    def slope(w: Tensor, s: float) -> Tensor:
        a = 1 / math.sqrt(1 + s * s)
        return posterior_noise(a * w, a, a * s, means, spread)

    w = z / alpha
    for s, below in pairwise(levels):
        h = below - s
        k1 = slope(w, s)
        k2 = slope(w + h / 2 * k1, s + h / 2)
        k3 = slope(w + h / 2 * k2, s + h / 2)
        k4 = slope(w + h * k3, below)
        w = w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return w - levels[-1] * slope(w, levels[-1])


def sampling(mixture: str, steps: int) -> dict[str, Any]:
    scale, spread = MIXTURES[mixture]
    errors: dict[str, list[Tensor]] = {name: [] for name in SAMPLERS}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        means = scale * torch.randn(8, 64, generator=generator, dtype=torch.float64)
        noise = torch.randn(64, 64, generator=generator, dtype=torch.float64)
        exact: Tensor | None = None
        for name, options in SAMPLERS.items():
            scheduler = BDIADDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **options
            )
            scheduler.set_timesteps(steps)
            levels = [
                (float(a) ** 0.5, (1 - float(a)) ** 0.5)
                for a in scheduler.alphas_cumprod[scheduler.timesteps]
            ]
            exact = probability_flow(noise, *levels[0], means, spread) if exact is None else exact
            z = noise
            for t, level in zip(scheduler.timesteps, levels, strict=True):
                z = scheduler.step(posterior_noise(z, *level, means, spread), t, z).prev_sample
            errors[name].append((z - exact).square().mean(1))
    return {
        name: {
            "rms": round(torch.cat(of_seed).mean().sqrt().item(), 5),
            "median": round(torch.cat(of_seed).median().sqrt().item(), 5),
            "rms_of_each_seed": [round(e.mean().sqrt().item(), 5) for e in of_seed],
        }
        for name, of_seed in errors.items()
    }


def main() -> None:
    cells = Cells(
        "bdia_controlled",
        {
            "what": __doc__.strip().splitlines()[0],
            "crops": {"known": 1500, "unseen": 128, "seed": 0},
            "sampling": {"samples": 64, "seeds": [0, 1, 2]},
        },
    )
    for steps in (10, 20, 50):
        for name, options in INVERSIONS.items():
            key = f"reconstruction/{steps}/{name}"
            cells.once(key, lambda s=steps, o=options: reconstruction(s, o))
    for mixture in MIXTURES:
        for steps in (10, 20, 40):
            cells.once(f"sampling/{mixture}/{steps}", lambda m=mixture, s=steps: sampling(m, s))


if __name__ == "__main__":
    main()
