"""The shipped `fashion` model with binary middle blocks: its loss, its samples and its size.

The ten convolutions and linear layers of the UNet's middle block, 0.67 of 2.54 million parameters, become
binary: their weights alone, or weights and inputs; then the whole deepest level, the middle block between the
last block down and the first one up. "untrained": signs with the best α for each output. Fine-tuning: 240
steps of 32 training images, AdamW, rate 0.0001, cosine; weights alone in stage 2 all along, weights and
inputs half of it in stage 1. The network "as it is" is fine-tuned too, since that alone changes it; at rate
0.001 as well, which is too fast.

Loss: of ε on 1,000 test images, each with one fixed noise and time. Fréchet distance: EfficientNet-Lite0
features of 500 samples, DDIM, 10 steps, the same seeds everywhere, to 2,000 test images. Bytes: of the
denoiser's file, with all that is not binary in float16, as it ships; measured is what was read back from it.

    python benchmarks/biper_fashion.py        (three quarters of an hour on a core)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from _fashion import frechet, fresh, loss, tune
from _results import RESULTS, Cells
from _tables import few, head, number, table
from diffusers import UNet2DModel

from dmkit.auxiliary.compression.biper import (
    binarize,
    binary_layers,
    export_packed,
    load_packed,
    set_stage,
)

SEEDS, STEPS, RATE, FAST = (0, 1, 2), 240, 1e-4, 1e-3
BINARY: dict[str, dict[str, Any]] = {
    "middle block, weights": {"layers": ["mid_block"], "binarize_input": False},
    "middle block, weights and inputs": {"layers": ["mid_block"]},
    "deepest level, weights": {
        "layers": ["down_blocks.3", "mid_block", "up_blocks.0"],
        "binarize_input": False,
    },
}
PLAIN = "as it is"
ABOUT = {"what": " ".join(__doc__.split("\n    python")[0].split("\n\n", 1)[1].split())}


def with_layers(settings: dict[str, Any] | None) -> UNet2DModel:
    """The shipped denoiser, with binary layers in stage "real" or without."""
    unet = fresh()
    if settings is not None:
        binarize(unet, omega=20, pretrained=True, **settings)
    return unet.eval()


def written(unet: UNet2DModel, settings: dict[str, Any] | None) -> tuple[UNet2DModel, int]:
    """What its file holds, and the file's bytes."""
    latent = [] if settings is None else [layer.weight for layer in binary_layers(unet).values()]
    for p in unet.parameters():
        if not any(p is w for w in latent):
            p.data = p.data.half()
    with tempfile.TemporaryDirectory() as folder:
        if settings is None:
            unet.save_pretrained(folder)
            size = (Path(folder) / "diffusion_pytorch_model.safetensors").stat().st_size
            return unet.float(), size
        size = export_packed(unet, folder)
        packed = load_packed(with_layers(None), folder)
        unet.float()
        x, t = torch.randn(2, 1, 32, 32), torch.tensor([10, 700])
        with torch.no_grad():
            torch.testing.assert_close(packed(x, t).sample, unet(x, t).sample)
        return packed, size


def measure(unet: UNet2DModel, settings: dict[str, Any] | None) -> dict[str, Any]:
    unet, size = written(unet, settings)
    return {"loss": loss(unet), "frechet": frechet(unet), "bytes": size}


def tuned(settings: dict[str, Any] | None, seed: int, rate: float = RATE) -> dict[str, Any]:
    torch.manual_seed(seed)
    unet = with_layers(settings)
    if settings is None or not settings.get("binarize_input", True):
        parts = {"binary": STEPS}
    else:
        parts = {"real": STEPS // 2, "binary": STEPS // 2}
    for stage, steps in parts.items():
        if settings is not None:
            set_stage(unet, stage, rescale=True)
        tune(unet, steps, seed, rate)
    return measure(unet, settings)


def untrained(settings: dict[str, Any]) -> dict[str, Any]:
    unet = with_layers(settings)
    set_stage(unet, "binary", rescale=True)
    return measure(unet, settings)


# The table and the plot


def rows_of(cells: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Runs by the name of a row, in their order."""
    found = {"shipped": [cells["shipped"]]}
    found |= {f"{k.partition('/')[2]}, untrained": [c] for k, c in cells.items() if k.startswith("signs/")}
    for name in (PLAIN, *BINARY):
        runs = [cells[key] for seed in SEEDS if (key := f"tuned/{name}/{seed}") in cells]
        if runs:
            found[f"{name}, fine-tuned"] = runs
    found[f"{PLAIN}, fine-tuned at rate {FAST:g}"] = [cells[f"fast/{PLAIN}"]]
    return found


def render(content: dict[str, Any]) -> str:
    found = rows_of(content["cells"])
    text = head(content, "BiPer in a UNet")
    rows = [
        [
            name,
            len(runs),
            few([1000 * run["loss"] for run in runs], 4),
            few([run["frechet"] for run in runs]),
            number(runs[0]["bytes"] / 1e6),
        ]
        for name, runs in found.items()
    ]
    text += table(["", "runs", "1000 x loss", "Fréchet distance", "MB"], rows)
    draw(found)
    return text + "\n![Loss and distance of each](biper_fashion.png)\n"


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    names = list(found)[::-1]
    for axis, (key, label) in zip(
        axes, {"loss": "1000 x loss on test images", "frechet": "Fréchet distance"}.items(), strict=True
    ):
        scale = 1000 if key == "loss" else 1
        for place, name in enumerate(names):
            values = [scale * run[key] for run in found[name]]
            colour = "C0" if "untrained" in name else "k" if PLAIN in name or name == "shipped" else "C3"
            axis.plot(values, [place] * len(values), "o", color=colour, ms=5, alpha=0.7)
        axis.set_yticks(range(len(names)), labels=names)
        axis.axvline(scale * found["shipped"][0][key], color="grey", ls="--", lw=1)
        axis.set(xlabel=label)
    figure.savefig(RESULTS / "biper_fashion.png", dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("biper_fashion", ABOUT)
    cells.once("shipped", lambda: measure(with_layers(None), None))
    for name, settings in BINARY.items():
        cells.once(f"signs/{name}", lambda settings=settings: untrained(settings))
    cells.once(f"fast/{PLAIN}", lambda: tuned(None, SEEDS[0], FAST))
    for seed in SEEDS:
        for name, settings in {PLAIN: None, **BINARY}.items():
            cells.once(f"tuned/{name}/{seed}", lambda settings=settings, seed=seed: tuned(settings, seed))


if __name__ == "__main__":
    main()
