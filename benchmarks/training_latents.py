"""ANT and ScaleLong on a real model: latents of `emoji` scenes, unconditional, a U-ViT and a UNet.

Every run is the same in all but the method: AdamW, batches of 64, averaged weights, one stream of data and
noise for each seed. At three points of the training: the loss on held-out scenes in each of five SNR
clusters, and the Fréchet distance (EfficientNet-Lite0, not FID) of 1,000 samples, 20 DDIM steps, to the 2,000
held-out scenes. Times are process time of the training steps alone.

"runs/network/method/seed/step"; "rates/network/method/seed/factor": the loss after 500 steps at 2, 4 and 8
times the learning rate; "gap/network/method": negative transfer gap per cluster, in loss and in distance,
against experts trained on one cluster alone.

    python benchmarks/training_latents.py [--networks uvit unet] [--seeds 0 1 2] [--parts runs rates gap]

Cells that are in the JSON already are not measured again.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _results import Cells
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from dmkit import data, metrics, zoo
from dmkit.errors import TrainingError
from dmkit.models import ScaleLongUNet2DModel, UViTModel
from dmkit.sampling import sample_batch
from dmkit.training.ant.affinity import task_affinity
from dmkit.training.ant.clustering import (
    TimestepClusters,
    affinity_cost,
    best_intervals,
    log_snr,
    snr_cost,
    timestep_cost,
)
from dmkit.training.ant.gap import cluster_losses, negative_transfer_gap
from dmkit.training.ant.sampling import ClusterTimestepSampler
from dmkit.training.arguments import TrainingArguments
from dmkit.training.caching import CachedTensors, cached, encode_images, weights_fingerprint
from dmkit.training.denoising import DenoisingTask, Examples
from dmkit.training.rules import build_rule, sum_losses
from dmkit.training.trainer import Step, Trainer

CACHE = Path(__file__).parents[1] / "outputs" / "cache"
POINTS, RATE_STEPS, BATCH, SAMPLES, CLUSTERS = (500, 1000, 1500), 500, 64, 1000, 5
LEARNING_RATE = {"uvit": 5e-4, "unet": 1e-3}
FACTORS = (2, 4, 8)
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


@dataclass(frozen=True)
class Method:
    """How a run differs from the plain one.

    Attributes:
        clusters: how the timesteps are cut: timestep, snr, affinity or random; None for no clusters.
        rule: how the clusters' losses are balanced.
        snr_gamma: γ of Min-SNR.
        scaling: options of skip scaling.
    """

    clusters: str | None = None
    rule: str = "sum"
    snr_gamma: float | None = None
    scaling: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    "plain": Method(),
    "min-snr": Method(snr_gamma=5.0),
    **{
        f"{cut} {rule}": Method(cut, rule) for rule in ("uw", "nash", "pcgrad") for cut in ("snr", "timestep")
    },
    **{f"affinity {rule}": Method("affinity", rule) for rule in ("uw", "nash", "pcgrad")},
    "random uw": Method("random", "uw"),
    "snr sum": Method("snr", "sum"),
    "cs": Method(scaling={"skip_scaling": "cs", "skip_kappa": 0.7}),
    "cs level": Method(scaling={"skip_scaling": "cs", "skip_kappa": 0.7, "skip_index": "level"}),
    "ls": Method(scaling={"skip_scaling": "ls"}),
    "inv_sqrt2": Method(scaling={"skip_scaling": "inv_sqrt2"}),
    "snr uw + cs": Method("snr", "uw", scaling={"skip_scaling": "cs", "skip_kappa": 0.7}),
}
# What a UNet, whose group norms undo most of a constant scaling, is compared on.
COMPARED = {
    "uvit": [name for name in METHODS if name != "cs level"],  # a U-ViT has one skip a level
    "unet": ["plain", "min-snr", "snr uw", "snr nash", "cs", "cs level", "ls", "inv_sqrt2"],
}
SCALED = ("plain", "cs", "ls", "inv_sqrt2")


@cache
def autoencoder() -> Any:
    return zoo.load("emoji").vae


@cache
def latents(split: str) -> CachedTensors:
    """Scaled latent means of a split, as the images of a pixel model would be."""
    scenes, vae = data.load("emoji", split=split), autoencoder()

    def encode() -> dict[str, Tensor]:
        return {"images": encode_images(scenes, vae)["latent_mean"] * vae.config.scaling_factor}

    key = f"{scenes.fingerprint()}-{weights_fingerprint(vae)}-means"
    return cached(CACHE / f"emoji-{split}-means.safetensors", key, encode)


@cache
def reference() -> metrics.FeatureSet:
    return metrics.describe(
        data.load("emoji", split="test"), metrics.EfficientNetLite0(), keep_features=False, cache=CACHE
    )


def network(kind: str, scaling: Mapping[str, Any], seed: int) -> nn.Module:
    """An untrained denoiser of 4x8x8 latents."""
    torch.manual_seed(seed)
    channels = autoencoder().config.latent_channels
    if kind == "uvit":
        return UViTModel(
            sample_size=8,
            patch_size=2,
            in_channels=channels,
            out_channels=channels,
            num_layers=8,
            num_attention_heads=3,
            attention_head_dim=32,
            **scaling,
        )
    return ScaleLongUNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        **{"skip_scaling": "none", **scaling},
    )


def intervals(kind: str, network_kind: str, seed: int) -> TimestepClusters:
    """Five clusters of timesteps. Those of the affinity are the same for every seed."""
    if kind == "random":
        dice = random.Random(seed)
        while True:
            starts = (0, *sorted(dice.sample(range(1, 1000), CLUSTERS - 1)))
            if min(b - a for a, b in zip(starts, (*starts[1:], 1000), strict=True)) >= 20:
                return TimestepClusters(starts, 1000)
    if kind == "affinity":
        return best_intervals(affinity_cost(affinity(network_kind)), CLUSTERS, min_size=20)
    cost = timestep_cost(1000) if kind == "timestep" else snr_cost(log_snr(DDPMScheduler(**SCHEDULE)))
    return best_intervals(cost, CLUSTERS, min_size=20)


@cache
def affinity(kind: str) -> Any:
    """(1000, 1000), from the plain run of another seed at its end."""
    trainer = run(kind, METHODS["plain"], seed=100)
    advance(trainer, POINTS[-1])
    rows = latents("train").tensors["images"]
    batches = [{"images": rows[k * BATCH : (k + 1) * BATCH].float()} for k in range(4)]
    with trainer.averaged() as modules:
        task = DenoisingTask(modules["unet"], DDPMScheduler(**SCHEDULE))
        return task_affinity(task, batches, group_size=20).full()


class OneCluster(DenoisingTask):
    """Trains on the timesteps of one cluster alone."""

    bounds: tuple[int, int]

    def examples(self, batch: Mapping[str, Any], step: Step, timesteps: Tensor | None = None) -> Examples:
        if timesteps is None:
            first, last = self.bounds
            timesteps = first + step.draws.integers(last - first + 1, (len(batch["images"]),))
        return super().examples(batch, step, timesteps)


def run(
    kind: str, method: Method, seed: int, factor: float = 1.0, interval: tuple[int, int] | None = None
) -> Trainer:
    """A trainer at step 0; `advance` it."""
    scheduler = DDPMScheduler(**SCHEDULE)
    clusters = intervals(method.clusters, kind, seed) if method.clusters else None
    task_kind = DenoisingTask if interval is None else OneCluster
    task = task_kind(
        network(kind, method.scaling, seed),
        scheduler,
        snr_gamma=method.snr_gamma,
        sampler=ClusterTimestepSampler(clusters) if clusters else None,
    )
    if interval is not None:
        task.bounds = interval
    arguments = TrainingArguments(
        output_dir=str(CACHE.parent / "training_latents"),
        seed=seed,
        train_batch_size=BATCH,
        max_train_steps=POINTS[-1],
        learning_rate=LEARNING_RATE[kind] * factor,
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=100,
        adam_beta1=0.9,
        use_ema=True,
        ema_max_decay=0.995,
        report_to="none",
        checkpointing_steps=0,
        save_images_epochs=0,
        save_model_epochs=0,
    )
    rule = build_rule(method.rule, CLUSTERS) if clusters else sum_losses
    return Trainer(task, latents("train"), arguments, rule=rule)


def advance(trainer: Trainer, step: int) -> float:
    """Trains up to a step; the seconds of process time that it took."""
    trainer.max_steps = step
    started = time.process_time()
    trainer.train()
    return time.process_time() - started


def held_out_losses(model: nn.Module) -> list[float]:
    """ε-loss of 512 held-out scenes in each SNR cluster, from low to high noise."""
    task = DenoisingTask(model, DDPMScheduler(**SCHEDULE))
    rows = latents("test").tensors["images"][:512].float()
    batches = [{"images": part} for part in rows.split(128)]
    return [round(loss, 5) for loss in cluster_losses(task, batches, intervals("snr", "", 0))]


@torch.no_grad()
def distance(model: nn.Module) -> float:
    """Fréchet distance of 1,000 samples."""
    scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1)
    vae = autoencoder()

    def images() -> Any:
        for first in range(0, SAMPLES, 100):
            sampled = sample_batch(model, scheduler, 20, range(first, first + 100))
            yield vae.decode(sampled / vae.config.scaling_factor).sample.nan_to_num(0).clamp(-1, 1)

    figures = metrics.evaluate_images(images(), reference(), metrics.EfficientNetLite0(), ("frechet",))
    return round(figures["frechet_efficientnet_lite0"], 2)


def measure_run(cells: Cells, kind: str, name: str, seed: int) -> None:
    """One training, measured at every point; nothing if all of them are known."""
    keys = {step: f"runs/{kind}/{name}/{seed}/{step:05d}" for step in POINTS}
    if all(key in cells.read() for key in keys.values()):
        return
    trainer, seconds = run(kind, METHODS[name], seed), 0.0
    for step, key in keys.items():
        seconds += advance(trainer, step)
        with trainer.averaged() as modules:
            figures = {
                "frechet": distance(modules["unet"]),
                "losses": held_out_losses(modules["unet"]),
                "seconds": round(seconds, 1),
            }
        cells.record(key, figures)
        print(f"{key}: {figures}", flush=True)


def measure_rate(kind: str, name: str, seed: int, factor: int) -> dict[str, Any]:
    """The mean held-out loss at a learning rate that may be too high."""
    trainer = run(kind, METHODS[name], seed, factor)
    try:
        advance(trainer, RATE_STEPS)
    except TrainingError as error:
        return {"loss": None, "stopped": str(error).split(".")[0]}
    losses = held_out_losses(trainer.unwrapped()["unet"])
    mean = sum(losses) / len(losses)
    return {"loss": round(mean, 5) if math.isfinite(mean) else None}


def measure_gaps(cells: Cells, kind: str, names: list[str]) -> None:
    """Negative transfer gap of trained networks against experts of as many steps, seed 0."""
    names = [name for name in names if f"gap/{kind}/{name}" not in cells.read()]
    if not names:
        return
    clusters = intervals("snr", kind, 0)
    experts = {}
    for index, bounds in enumerate(clusters.bounds):
        trainer = run(kind, METHODS["plain"], 0, interval=bounds)
        advance(trainer, POINTS[-1])
        with trainer.averaged() as modules:
            experts[index] = network(kind, {}, 0)
            experts[index].load_state_dict(modules["unet"].state_dict())
            experts[index].eval()
    alone = [held_out_losses(expert)[index] for index, expert in experts.items()]
    for name in names:
        trainer = run(kind, METHODS[name], 0)
        advance(trainer, POINTS[-1])
        with trainer.averaged() as modules:
            joint = modules["unet"]
            together = held_out_losses(joint)
            gaps = negative_transfer_gap(distance, joint, experts, clusters)
        cells.record(
            f"gap/{kind}/{name}",
            {
                "loss": [round(a - b, 5) for a, b in zip(alone, together, strict=True)],
                "frechet": [round(gaps[index], 2) for index in experts],
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["uvit", "unet"], choices=list(LEARNING_RATE))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["runs", "rates", "gap"])
    arguments = parser.parse_args()
    cells = Cells(
        "training_latents", {"what": __doc__.split("\n\n")[0], "steps": POINTS[-1], "samples": SAMPLES}
    )
    methods = {
        kind: [name for name in METHODS if name in arguments.methods and name in COMPARED[kind]]
        for kind in arguments.networks
    }
    for part in arguments.parts:
        for seed, kind in product(arguments.seeds, arguments.networks):
            for name in methods[kind]:
                if part == "runs":
                    measure_run(cells, kind, name, seed)
                elif part == "rates" and name in SCALED:
                    for factor in FACTORS:
                        key = f"rates/{kind}/{name}/{seed}/{factor}"
                        cells.once(key, partial(measure_rate, kind, name, seed, factor))
    for kind in arguments.networks if "gap" in arguments.parts else ():
        measure_gaps(cells, kind, ["plain", "snr uw"])


if __name__ == "__main__":
    main()
