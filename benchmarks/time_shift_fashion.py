"""Time-Shift and epsilon scaling on the shipped `fashion` model, against each plain sampler.

Settings are tuned on seed 0 (500 samples, 10 steps): first the half window in strides, then the cut-off; for
epsilon scaling b. The same setting, in strides, serves every step count. Results are 2,000 samples on seeds
1, 2, 3.

    python benchmarks/time_shift_fashion.py [--steps 10 5 20 50] [--shard K/N]

Cells that are in the JSON already are not measured again, so the run can stop and go on, in several
processes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

import torch
from _results import Cells
from _sampling import quality

from dmkit import data

FAMILIES = ("ddim", "ddpm", "pndm", "dpm++")
VARIANTS = ("plain", "label", "level", "marginal", "epsilon")
SEEDS = (1, 2, 3)
TUNING = {"seed": 0, "count": 500, "measures": ("frechet",)}
HALF_WINDOWS = (0.1, 0.2, 0.3, 0.4, 0.5)  # in strides
CUTOFFS = (100, 200, 300, 500)
SCALINGS = (0.003, 0.006, 0.01, 0.02, 0.04)


def data_variance() -> float:
    """v_0 of Fashion-MNIST: the mean variance within a training image, in the model's range."""
    pixels = (
        data.load("fashion-mnist", split="train", resolution=32).images_uint8()[:10_000].float() / 127.5 - 1
    )
    return round(float(pixels.flatten(1).var(dim=1).mean()), 4)


def settings(variant: str, steps: int, choice: dict[str, float], v_0: float) -> dict[str, Any]:
    if variant == "plain":
        return {}
    if variant == "epsilon":
        return {"epsilon_scaling": choice["scaling"]}
    rule = (
        {"time_shift_variance": "marginal", "time_shift_data_variance": v_0} if variant == "marginal" else {}
    )
    half = max(1, round(choice["half_window"] * (1000 // steps)))
    return {
        "time_shift_window": 2 * half,
        "time_shift_cutoff": int(choice["cutoff"]),
        "time_shift_mode": "level" if variant == "level" else "label",
        **rule,
    }


def sampler(family: str, variant: str) -> str:
    return {"plain": family, "epsilon": f"es-{family}"}.get(variant, f"ts-{family}")


def tune(cells: Cells, family: str, variant: str, v_0: float) -> dict[str, float]:
    """The best setting at 10 steps on seed 0."""

    def distance(**choice: float) -> float:
        key = f"tune/{family}/{variant}/" + ",".join(f"{k}={v:g}" for k, v in choice.items())
        chosen = settings(variant, 10, choice, v_0)
        figures = cells.once(
            key, lambda: quality("fashion", sampler(family, variant), 10, **TUNING, **chosen)
        )
        return next(iter(figures.values()))

    if variant == "plain":
        return {}
    if variant == "epsilon":
        return {"scaling": min(SCALINGS, key=lambda b: distance(scaling=b))}
    half = min(HALF_WINDOWS, key=lambda h: distance(half_window=h, cutoff=300))
    return {"half_window": half, "cutoff": min(CUTOFFS, key=lambda c: distance(half_window=half, cutoff=c))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 5, 20, 50])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument(
        "--shard", default="0/1", help="K/N: this process does every N-th family and variant."
    )
    arguments = parser.parse_args()
    shard, shards = map(int, arguments.shard.split("/"))
    torch.manual_seed(0)
    v_0 = data_variance()
    cells = Cells(
        "time_shift_fashion", {"what": __doc__.strip().splitlines()[0], "data_variance": v_0, "samples": 2000}
    )
    mine = list(itertools.product(arguments.families, arguments.variants))[shard::shards]
    for steps, seed, (family, variant) in itertools.product(arguments.steps, arguments.seeds, mine):
        choice = tune(cells, family, variant, v_0)
        chosen = settings(variant, steps, choice, v_0)
        name = sampler(family, variant)
        cells.once(
            f"quality/{steps}/{family}/{variant}/seed{seed}",
            lambda n=name, k=steps, s=seed, c=chosen: {
                **quality("fashion", n, k, seed=s, **c),
                "settings": c,
            },
        )
    summary(cells)


def summary(cells: Cells) -> None:
    """Prints mean and spread of the Fréchet distance by steps, family and variant."""
    found: dict[str, list[float]] = {}
    for key, figures in cells.read().items():
        if key.startswith("quality/"):
            found.setdefault(key.rsplit("/", 1)[0], []).append(figures["frechet_efficientnet_lite0"])
    for key, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{key:40s} {statistics.mean(values):8.2f} ± {spread:.2f}  ({len(values)} seeds)")


if __name__ == "__main__":
    main()
