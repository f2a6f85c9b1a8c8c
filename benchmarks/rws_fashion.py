"""Signatures of denoisers: what a fine-tuning of the shipped `fashion` learned, patched into another one.

θ_0 is the shipped UNet, θ_s a fine-tuning of it on 6,000 training images, θ_c one on the same images of
lower contrast (`dmkit.data.corruptions`, severity 5). Their signature is patched into a third UNet, the θ_s
of the next seed: fine-tuned as well, with other images, draws and weights. Each fine-tuning: 80 steps of 32
images, AdamW, rate 0.0003, cosine.

Loss: of ε on 300 test images, of the kind of θ_c and as they are, each with one fixed noise and time.
Fréchet distance: EfficientNet-Lite0 features of 500 samples, DDIM, 10 steps, the same seeds everywhere, to
2,000 test images of the kind of θ_c. Bytes: of the signature's file, and of a UNet in float16.

    python benchmarks/rws_fashion.py        (a quarter of an hour on a core)
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _fashion import as_they_are, frechet, fresh, loss, tune
from _results import RESULTS, Cells
from _tables import few, head, number, table
from diffusers import UNet2DModel
from torch import Tensor

from dmkit import data
from dmkit.auxiliary.compression.rws import RobustWeightSignature, patch
from dmkit.data import Rows
from dmkit.data.corruptions import Corruption

SEEDS, STEPS, RATE, IMAGES = (0, 1, 2), 80, 3e-4, 6000
TESTED, WEIGHTS = 300, (0.25, 0.5, 0.75, 1.25, 1.5)
ABOUT = {"what": " ".join(__doc__.split("\n    python")[0].split("\n\n", 1)[1].split())}


def lower_contrast(images: Tensor) -> Tensor:
    changed = Corruption("contrast", 5)(images.float() / 255, torch.Generator().manual_seed(0))
    return (changed * 255).round().to(torch.uint8)


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {"contrast": lower_contrast}
ROWS = {
    "before": "third UNet, before",
    "patched": "signature, weight 1",
    "16 levels": "the same in 16 levels",
    "difference": "plain difference θ_c - θ_s",
    "shallow": "signature of 10 convolutions",
    "own": "signature in its own θ_s",
    "robust": "θ_c itself",
}


@cache
def finetuned(target: str | None, seed: int) -> UNet2DModel:
    """θ_c; θ_s without a target. Seeds have images of their own."""
    pixels = data.load("fashion-mnist", split="train", resolution=32).images_uint8(
        range(seed * IMAGES, (seed + 1) * IMAGES)
    )
    if target is not None:
        pixels = TARGETS[target](pixels)
    torch.manual_seed(seed)
    unet = fresh()
    tune(unet, STEPS, seed, RATE, Rows(images=pixels.float() / 127.5 - 1))
    return unet


def losses(unet: UNet2DModel, target: str) -> dict[str, float]:
    return {
        "target": loss(unet, TARGETS[target], TESTED),
        "clean": loss(unet, as_they_are, TESTED),
    }


def file_size(signature: RobustWeightSignature) -> int:
    with tempfile.TemporaryDirectory() as folder:
        signature.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def measure(target: str, seed: int) -> dict[str, Any]:
    standard, robust = finetuned(None, seed), finetuned(target, seed)
    third = finetuned(None, SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)])
    example = torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64)

    def signature(layers: str = ".*", **more: Any) -> RobustWeightSignature:
        return RobustWeightSignature.extract(
            fresh(), standard, robust, layers, head=True, inputs=example, corruption=target, **more
        )

    whole = signature()
    signatures = {
        "patched": whole,
        "16 levels": whole.quantize(16),
        "difference": signature(project=False),
        "shallow": signature("conv:10"),
    }
    clean = {name: value.clone() for name, value in third.state_dict().items()}
    figures: dict[str, Any] = {"before": losses(third, target), "robust": losses(robust, target)}
    figures["before"]["frechet"] = frechet(third, TARGETS[target])
    figures["robust"]["frechet"] = frechet(robust, TARGETS[target])
    sweep = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the third UNet is not θ_s, which is the point
        for name, of_kind in signatures.items():
            with patch(third, of_kind) as patched:
                figures[name] = {**losses(third, target), "bytes": file_size(of_kind)}
                if name == "patched":
                    figures[name]["frechet"] = frechet(third, TARGETS[target])
                    for weight in WEIGHTS:
                        patched.set_weight(target, weight)
                        sweep[f"{weight:g}"] = losses(third, target)
        with patch(standard, whole):
            figures["own"] = losses(standard, target)
    figures["restored"] = all(torch.equal(value, clean[name]) for name, value in third.state_dict().items())
    cosine = torch.cosine_similarity(*directions(standard, robust), dim=0)
    return {**figures, "sweep": sweep, "cosine of a and d": float(cosine)}


def directions(standard: UNet2DModel, robust: UNet2DModel) -> tuple[Tensor, Tensor]:
    """a and d, flat."""
    start = torch.nn.utils.parameters_to_vector(fresh().parameters())
    ends = (torch.nn.utils.parameters_to_vector(unet.parameters()) for unet in (standard, robust))
    a, d = ((end - start).detach() for end in ends)
    return a, d


# The table and the plot


def render(content: dict[str, Any]) -> str:
    text = head(content, "RWS between denoisers")
    for target in TARGETS:
        runs = [c for key, c in content["cells"].items() if key.startswith(f"{target}/")]
        if not runs:
            continue
        rows = []
        for key, name in ROWS.items():
            found = [
                few([run[key][column] for run in runs]) if column in runs[0][key] else ""
                for column in ("target", "clean", "frechet")
            ]
            size = number(runs[0][key]["bytes"] / 1e6) if "bytes" in runs[0][key] else ""
            rows.append([name, len(runs), *found, size])
        text += f"## {target}\n\n"
        header = ["", "runs", f"loss, {target}", "loss, as they are", f"distance, {target}", "MB"]
        text += table(header, rows) + "\n"
        back = sum(run["restored"] for run in runs)
        text += f"Removed bit for bit in {back} of {len(runs)}. Cosine of a and d: "
        text += few([run["cosine of a and d"] for run in runs]) + ".\n\n"
    text += f"A UNet in float16: {number(content['cells']['float16'] / 1e6)} MB.\n\n"
    draw(content["cells"])
    return text + "![Losses over the weight](rws_fashion.png)\n"


def draw(cells: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    found = {t: [c for key, c in cells.items() if key.startswith(f"{t}/")] for t in TARGETS}
    found = {target: runs for target, runs in found.items() if runs}
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.6 * len(found), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (target, runs) in zip(axes[0], found.items(), strict=True):
        for kind, colour in {"target": "C3", "clean": "C0"}.items():
            label = {"target": f"{target} images", "clean": "images as they are"}[kind]
            curves = [
                {0.0: run["before"][kind], 1.0: run["patched"][kind]}
                | {float(weight): found[kind] for weight, found in run["sweep"].items()}
                for run in runs
            ]
            weights = sorted(curves[0])
            for curve in curves:
                axis.plot(weights, [curve[w] for w in weights], ".", color=colour, ms=4)
            axis.plot(weights, [mean(c[w] for c in curves) for w in weights], color=colour, label=label)
            axis.axhline(mean(run["robust"][kind] for run in runs), color=colour, ls=":", lw=1)
        axis.set(title=f"{target}; dotted: θ_c itself", xlabel="weight", ylabel="loss", yscale="log")
        axis.legend(fontsize=8)
    figure.savefig(RESULTS / "rws_fashion.png", dpi=110)
    plt.close(figure)


def size_of_unet() -> int:
    with tempfile.TemporaryDirectory() as folder:
        fresh().half().save_pretrained(folder)
        return (Path(folder) / "diffusion_pytorch_model.safetensors").stat().st_size


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("rws_fashion", ABOUT)
    cells.once("float16", size_of_unet)
    for target in TARGETS:
        for seed in SEEDS:
            cells.once(f"{target}/seed={seed}", lambda target=target, seed=seed: measure(target, seed))


if __name__ == "__main__":
    main()
