"""The shipped `fashion` model with binary middle blocks: its loss, its samples and its size.

The ten convolutions and linear layers of the UNet's middle block, 0.67 of 2.54 million parameters, become
binary: their weights alone, or weights and inputs; then the whole deepest level, the middle block between the
last block down and the first one up. "untrained": signs with the best α for each output. Fine-tuning: 120
steps of 32 training images, AdamW, rate 0.001, cosine; weights alone in stage 2 all along, weights and inputs
half of it in stage 1. The network "as it is" is fine-tuned too, which changes it as well.

Loss: of ε on 1,000 test images, each with one fixed noise and time. Fréchet distance: EfficientNet-Lite0
features of 500 samples, DDIM, 10 steps, the same seeds everywhere, to 2,000 test images. Bytes: of the
denoiser's file, with all that is not binary in float16, as it ships; measured is what was read back from it.

    python benchmarks/biper_fashion.py        (ten minutes on a core for a seed)
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import few, head, number, table
from diffusers import DDIMScheduler, UNet2DModel

from dmkit import data, metrics, zoo
from dmkit.auxiliary.compression.biper import (
    binarize,
    binary_layers,
    export_packed,
    load_packed,
    set_stage,
)
from dmkit.sampling import sample_batch
from dmkit.training.arguments import TrainingArguments
from dmkit.training.denoising import DenoisingTask
from dmkit.training.trainer import Trainer

SEEDS, STEPS, BATCH = (0, 1, 2), 120, 32
TESTED, SAMPLED, SAMPLE_STEPS, REFERENCE = 1000, 500, 10, 2000
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


@cache
def shipped() -> Any:
    return zoo.load("fashion")


@cache
def extractor() -> Any:
    return metrics.EfficientNetLite0()


@cache
def reference() -> metrics.FeatureSet:
    return metrics.describe(test_images(REFERENCE), extractor())


def test_images(count: int) -> torch.Tensor:
    """(count, 1, 32, 32), uint8."""
    return data.load("fashion-mnist", split="test", resolution=32).images_uint8(range(count))


def fresh(settings: dict[str, Any] | None) -> UNet2DModel:
    """The shipped denoiser, with binary layers in stage "real" or without."""
    unet = UNet2DModel.from_config(shipped().unet.config)
    unet.load_state_dict(shipped().unet.state_dict())
    if settings is not None:
        binarize(unet, omega=20, pretrained=True, **settings)
    return unet.eval()


def tune(unet: UNet2DModel, steps: int, seed: int) -> None:
    images = data.load("fashion-mnist", split="train", resolution=32)
    task = DenoisingTask(unet, shipped().scheduler)
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            seed=seed,
            train_batch_size=BATCH,
            max_train_steps=steps,
            learning_rate=1e-3,
            lr_warmup_steps=20,
            checkpointing_steps=0,
            save_images_epochs=0,
            save_model_epochs=0,
            report_to="none",
        )
        Trainer(task, images, training).train()
    unet.eval()


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
        packed = load_packed(fresh(None), folder)
        unet.float()
        x, t = torch.randn(2, 1, 32, 32), torch.tensor([10, 700])
        with torch.no_grad():
            torch.testing.assert_close(packed(x, t).sample, unet(x, t).sample)
        return packed, size


@torch.no_grad()
def loss(unet: UNet2DModel) -> float:
    images = test_images(TESTED)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(TESTED, 1, 32, 32, generator=generator)
    times = torch.randperm(TESTED, generator=generator) * 1000 // TESTED
    total = 0.0
    for part in torch.arange(TESTED).split(100):
        noisy = shipped().scheduler.add_noise(images[part].float() / 127.5 - 1, noise[part], times[part])
        total += float((unet(noisy, times[part]).sample - noise[part]).square().mean()) * len(part)
    return total / TESTED


def measure(unet: UNet2DModel, settings: dict[str, Any] | None) -> dict[str, Any]:
    unet, size = written(unet, settings)
    scheduler = DDIMScheduler.from_config(shipped().scheduler.config)
    seeds = torch.arange(SAMPLED).split(50)
    samples = torch.cat([sample_batch(unet, scheduler, SAMPLE_STEPS, part.tolist()) for part in seeds])
    found = metrics.evaluate_images(samples.clamp(-1, 1), reference(), extractor(), metrics=("frechet",))
    return {"loss": loss(unet), "frechet": found["frechet_efficientnet_lite0"], "bytes": size}


def tuned(settings: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    unet = fresh(settings)
    if settings is None or not settings.get("binarize_input", True):
        parts = {"binary": STEPS}
    else:
        parts = {"real": STEPS // 2, "binary": STEPS // 2}
    for stage, steps in parts.items():
        if settings is not None:
            set_stage(unet, stage, rescale=True)
        tune(unet, steps, seed)
    return measure(unet, settings)


def untrained(settings: dict[str, Any]) -> dict[str, Any]:
    unet = fresh(settings)
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
    return found


def render(content: dict[str, Any]) -> str:
    found = rows_of(content["cells"])
    text = head(content, "BiPer in a UNet")
    rows = [
        [
            name,
            len(runs),
            few([run["loss"] for run in runs]),
            few([run["frechet"] for run in runs]),
            number(runs[0]["bytes"] / 1e6),
        ]
        for name, runs in found.items()
    ]
    text += table(["", "runs", "loss", "Fréchet distance", "MB"], rows)
    draw(found)
    return text + "\n![Loss and distance of each](biper_fashion.png)\n"


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    names = list(found)[::-1]
    for axis, (key, label) in zip(
        axes, {"loss": "loss on test images", "frechet": "Fréchet distance"}.items(), strict=True
    ):
        means = [sum(run[key] for run in found[name]) / len(found[name]) for name in names]
        axis.barh(names, means, color="C0", alpha=0.6)
        for place, name in enumerate(names):
            axis.plot([run[key] for run in found[name]], [place] * len(found[name]), "k.", ms=4)
        axis.axvline(found["shipped"][0][key], color="grey", ls="--", lw=1)
        axis.set(xscale="log", xlabel=label)
    figure.savefig(RESULTS / "biper_fashion.png", dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("biper_fashion", ABOUT)
    cells.once("shipped", lambda: measure(fresh(None), None))
    for name, settings in BINARY.items():
        cells.once(f"signs/{name}", lambda settings=settings: untrained(settings))
    for seed in SEEDS:
        for name, settings in {PLAIN: None, **BINARY}.items():
            cells.once(f"tuned/{name}/{seed}", lambda settings=settings, seed=seed: tuned(settings, seed))


if __name__ == "__main__":
    main()
