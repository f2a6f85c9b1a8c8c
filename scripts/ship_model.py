"""Makes a zoo entry of a training checkpoint: half-precision weights, held-out examples, a measured card.

    python scripts/ship_model.py outputs/fashion/checkpoint-8000 --name fashion \\
        --recipe scripts/recipes/fashion.yaml

The averaged weights are shipped. What half precision costs is measured on the same seeds and written in the
card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

from dmkit import data, metrics
from dmkit._files import atomic_folder, load_json
from dmkit.images import grid, save_png, to_pil
from dmkit.sampling import generate_batches

ZOO = Path(__file__).parents[1] / "dmkit" / "zoo"

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [unconditional-image-generation]
dataset: {dataset}
---
# {name}

{description}

| | |
| --- | --- |
| network | `UNet2DModel`, {parameters:.2f} M parameters, {shape} |
| data | {dataset}, training split ({data_license}) |
| weights | Apache-2.0, float16 safetensors |
| recipe | `scripts/recipes/{recipe}`, seed {seed}, checkpoint of step {steps:,} of {planned:,} |
| seen | {images:,} images in batches of {batch}; averaged weights (EMA) |
| {metric} | **{value:.1f}** (95 % interval {low:.1f} to {high:.1f}) |
| measured with | {count:,} samples, {ddim} DDIM steps, seeds from {first_seed:,}, {reference:,} test images |
| float16 against float32 | {half:.2f} against {full:.2f} at 10 DDIM steps, same seeds |

The distance is a Fréchet distance of EfficientNet-Lite0 features, not an FID.

```python
from diffusers import DiffusionPipeline

import dmkit.zoo

pipe = DiffusionPipeline.from_pretrained(dmkit.zoo.path("{name}"))
```

`examples/` holds the first {examples} images of the test split, which training never saw.

Known limits: {limits}

Data citation: {citation}
"""


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint-N folder of a training.", exists=True)],
    name: Annotated[str, typer.Option(help="Name in the zoo.")],
    recipe: Annotated[Path, typer.Option(help="The recipe of the training.", exists=True)],
    description: Annotated[
        str, typer.Option()
    ] = "Clothes: a pixel diffusion model of Fashion-MNIST, in grey.",
    limits: Annotated[str, typer.Option()] = "prints and lettering on clothes are only hinted at.",
    count: Annotated[int, typer.Option(help="Samples for the metric.")] = 2000,
    ddim_steps: Annotated[int, typer.Option(help="Steps for the metric.")] = 50,
    first_seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = 100_000_000,
    examples: Annotated[int, typer.Option(help="Held-out images to ship.")] = 64,
) -> None:
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    test = data.load(settings["dataset_name"], split="test", resolution=settings["resolution"])
    reference = metrics.describe(test)

    def measured(pipe: Any, steps: int, interval: bool = False) -> dict[str, Any]:
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        images = torch.cat(list(generate_batches(pipe, scheduler, steps, count, seed=first_seed)))
        save_png(grid(images[:100]), checkpoint.parent / f"{name}-{steps}-steps.png")
        return metrics.evaluate_images(images, reference, metrics=("frechet",), interval=interval)

    unet = UNet2DModel.from_pretrained(checkpoint / "unet_ema")
    scheduler = DDPMScheduler(
        num_train_timesteps=settings["ddpm_num_steps"],
        beta_schedule=settings["ddpm_beta_schedule"],
        prediction_type=settings["prediction_type"],
    )
    full = measured(DDPMPipeline(unet=unet, scheduler=scheduler), 10)
    with atomic_folder(ZOO / name) as folder:
        DDPMPipeline(unet=unet.half(), scheduler=scheduler).save_pretrained(folder)
        shipped = DiffusionPipeline.from_pretrained(folder)
        half, final = measured(shipped, 10), measured(shipped, ddim_steps, interval=True)
        metric = "frechet_efficientnet_lite0"
        for k in range(examples):
            item = test[k]
            label = test.label_names[item["labels"]].lower().replace("/", "-").replace(" ", "-")
            save_png(to_pil(item["images"]), folder / "examples" / f"{k:02d}-{label}.png")
        steps = load_json(checkpoint / "state.json")["step"]
        card = CARD.format(
            name=name,
            description=description,
            limits=limits,
            data_license=test.license,
            citation=test.citation,
            dataset=settings["dataset_name"],
            parameters=sum(p.numel() for p in unet.parameters()) / 1e6,
            shape="x".join(map(str, (unet.config.in_channels, *[unet.config.sample_size] * 2))),
            recipe=recipe.name,
            seed=settings["seed"],
            steps=steps,
            planned=settings["max_train_steps"],
            batch=settings["train_batch_size"],
            images=steps * settings["train_batch_size"],
            metric=metric,
            value=final[metric],
            low=final[f"{metric}_interval"][0],
            high=final[f"{metric}_interval"][1],
            half=half[metric],
            full=full[metric],
            count=count,
            ddim=ddim_steps,
            first_seed=first_seed,
            reference=len(test),
            examples=examples,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    typer.run(main)
