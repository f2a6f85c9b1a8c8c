"""Makes a zoo entry of a trained unconditional pipeline: half-precision weights, held-out examples, measured
card.

    python scripts/ship_model.py outputs/fashion --name fashion --recipe scripts/recipes/fashion.yaml

Half precision is shipped only if the Fréchet distance does not move: both are measured here, on the same
seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline

from dmkit import data, metrics
from dmkit._files import atomic_folder, load_json
from dmkit.images import save_png, to_pil
from dmkit.sampling import generate_batches

ZOO = Path(__file__).parents[1] / "dmkit" / "zoo"

CARD = """---
license: {license}
library_name: diffusers
tags: [unconditional-image-generation]
dataset: {dataset}
---
# {name}

{description}

| | |
| --- | --- |
| network | `UNet2DModel`, {parameters:.2f} M parameters, {shape} |
| data | {data} |
| licence | weights Apache-2.0; data: {license} |
| recipe | `scripts/recipes/{recipe}`, seed {seed} |
| trained for | {steps:,} steps of batch {batch} ({images:,} images seen), EMA weights |
| weights | {precision} safetensors |
| {metric} | **{value:.2f}** (95 % interval {low:.2f} to {high:.2f}): {count:,} samples, {ddim} DDIM steps, seeds from {first_seed}, against the {reference:,} held-out test images |
| the same in float32 | {value32:.2f} |

```python
from diffusers import DiffusionPipeline
import dmkit.zoo

pipe = DiffusionPipeline.from_pretrained(dmkit.zoo.path("{name}"))
```

`examples/` holds the first {examples} images of the test split (never trained on), as PNG files.

Known limits: {limits}

Citation: {citation}
"""


def main(
    run: Annotated[Path, typer.Argument(help="The output folder of the training.", exists=True)],
    name: Annotated[str, typer.Option(help="Name in the zoo.")],
    recipe: Annotated[Path, typer.Option(exists=True)],
    description: Annotated[
        str, typer.Option()
    ] = "Clothes: a pixel diffusion model of Fashion-MNIST at 32x32, in grey.",
    limits: Annotated[
        str, typer.Option()
    ] = "low resolution and grey; prints and lettering on clothes are only hinted at.",
    count: Annotated[int, typer.Option(help="Samples for the metric.")] = 2000,
    ddim_steps: Annotated[int, typer.Option()] = 50,
    first_seed: Annotated[int, typer.Option()] = 100_000,
    examples: Annotated[int, typer.Option()] = 64,
) -> None:
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    test = data.load(settings["dataset_name"], split="test", resolution=settings["resolution"])
    with atomic_folder(ZOO / name) as folder:
        pipe = DiffusionPipeline.from_pretrained(run)
        figures = {}
        for dtype in (torch.float32, torch.float16):
            pipe.unet.to(dtype)
            if dtype == torch.float16:
                pipe.save_pretrained(folder)
                # What users run: half-precision weights, loaded into a float32 network.
                pipe = DiffusionPipeline.from_pretrained(folder)
            scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
            images = torch.cat(list(generate_batches(pipe, scheduler, ddim_steps, count, seed=first_seed)))
            figures[dtype] = metrics.evaluate_images(images, test, metrics=("frechet",), interval=True)
        key = next(
            k for k in figures[torch.float16] if k.startswith("frechet") and not k.endswith("interval")
        )
        low, high = figures[torch.float16][f"{key}_interval"]
        state = load_json(
            sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1] / "state.json"
        )
        for k in range(examples):
            label = test.label_names[test[k]["labels"]].lower().replace("/", "-").replace(" ", "-")
            save_png(to_pil(test[k]["images"]), folder / "examples" / f"{k:02d}-{label}.png")
        card = CARD.format(
            name=name,
            description=description,
            limits=limits,
            license=test.license,
            citation=test.citation,
            dataset=settings["dataset_name"],
            data=f"{test.name}, training split",
            parameters=sum(p.numel() for p in pipe.unet.parameters()) / 1e6,
            shape="x".join(map(str, (pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2))),
            recipe=recipe.name,
            seed=settings["seed"],
            steps=state["step"],
            batch=settings["train_batch_size"],
            images=state["step"] * settings["train_batch_size"],
            precision="float16",
            metric=key,
            value=figures[torch.float16][key],
            value32=figures[torch.float32][key],
            low=low,
            high=high,
            count=count,
            ddim=ddim_steps,
            first_seed=first_seed,
            reference=len(test),
            examples=examples,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{name}: {figures}")


if __name__ == "__main__":
    typer.run(main)
