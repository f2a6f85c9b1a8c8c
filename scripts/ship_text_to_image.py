"""Makes a zoo entry of a text-to-image training: half-precision weights, held-out examples, a measured card.

    python scripts/ship_text_to_image.py outputs/emoji/checkpoint-8000 --name emoji \\
        --recipe scripts/recipes/emoji.yaml

The averaged denoiser is shipped with the recipe's autoencoder and text encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as UNet
from transformers import CLIPTextModel, CLIPTokenizer

from dmkit import data
from dmkit._files import atomic_folder, load_json, save_json
from dmkit.evaluation import Reference, load_evaluator, quality
from dmkit.images import grid, save_png, to_pil
from dmkit.metrics import frechet_distance, psnr
from dmkit.sampling import generate

ZOO = Path(__file__).parents[1] / "dmkit" / "zoo"

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [text-to-image, stable-diffusion]
dataset: {dataset}
---
# {name}

{description}

| | |
| --- | --- |
| denoiser | `UNet2DConditionModel`, {parameters:.2f} M parameters, {latent} latents, {prediction} |
| autoencoder | `AutoencoderKL`, {vae_parameters:.2f} M; {psnr} on held-out images |
| text encoder | `CLIPTextModel`, {text_parameters:.2f} M, trained on the same captions |
| data | {dataset}, training split ({data_license}) |
| weights | Apache-2.0, float16 safetensors |
| recipe | `scripts/recipes/{recipe}`, seed {seed}, checkpoint of step {steps:,}{earlier} |
| seen | {images:,} images in batches of {batch}; averaged weights (EMA) |
| measured with | {ddim} DDIM steps, guidance {guidance:g}, captions of the data set, `emoji-evaluator` |
| Fréchet distance | **{frechet:.1f}**, {count:,} samples; real against real {floor:.1f} |
| right caption among 100, compositions seen | top-1 {seen_top1:.1%}, top-5 **{seen_top5:.1%}** |
| right caption among 100, compositions never seen | top-1 {unseen_top1:.1%}, top-5 **{unseen_top5:.1%}** |
| float16 against float32 | largest difference of a pixel {half:.3f} of 2, mean {half_mean:.4f} |

The distance is a Fréchet distance of EfficientNet-Lite0 features, not an FID.

```python
from diffusers import DiffusionPipeline

import dmkit.zoo

pipe = DiffusionPipeline.from_pretrained(dmkit.zoo.path("{name}"))
image = pipe("a red heart", num_inference_steps=20, guidance_scale={guidance:g}).images[0]
```

`examples/` holds {examples} held-out images; `captions.txt` has a line for each.

Prompts that it knows are those of `dmkit.data.scenes`: a subject, perhaps a colour, a background, a place
("a small ... in the top left"), a style ("noto", "twemoji"), or two subjects.

Known limits: {limits}

Credits: {citation}
"""


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint-N folder of a training.", exists=True)],
    name: Annotated[str, typer.Option(help="Name in the zoo.")],
    recipe: Annotated[Path, typer.Option(help="The recipe of the training.", exists=True)],
    description: Annotated[str, typer.Option()] = (
        "Emoji: a small text-to-image model in the layout of Stable Diffusion, 32x32 pixels."
    ),
    limits: Annotated[str, typer.Option()] = "small and paired subjects are less sharp than large ones.",
    guidance: Annotated[float, typer.Option(help="Guidance scale of the figures.")] = 3.0,
    ddim_steps: Annotated[int, typer.Option(help="Steps of the figures.")] = 20,
    count: Annotated[int, typer.Option(help="Samples for the Fréchet distance.")] = 2000,
    prompts: Annotated[int, typer.Option(help="Captions for the retrieval.")] = 200,
    examples: Annotated[int, typer.Option(help="Held-out images to ship.")] = 64,
    earlier_steps: Annotated[
        int, typer.Option(min=0, help="Steps of the trainings that this one started from.")
    ] = 0,
    replace: Annotated[bool, typer.Option(help="Replace an entry of this name.")] = False,
) -> None:
    if (ZOO / name).exists() and not replace:
        raise typer.BadParameter(f"{ZOO / name} exists; say --replace.")
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    test, unseen = (
        data.load(settings["dataset_name"], split=split, resolution=settings["resolution"])
        for split in ("test", "unseen")
    )
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(settings["vae"]),
        "text_encoder": CLIPTextModel.from_pretrained(settings["text_encoder"]),
        "unet": UNet.from_pretrained(checkpoint / "unet_ema"),
        "tokenizer": CLIPTokenizer.from_pretrained(settings["text_encoder"]),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=settings["prediction_type"],
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    asked = list(test.captions[:36])

    def drawn(pipeline: Any) -> torch.Tensor:
        return generate(
            pipeline, pipeline.scheduler, ddim_steps, range(36), prompt=asked, guidance_scale=guidance
        )

    full = drawn(pipe)
    originals = torch.stack([item["images"] for item in test.__getitems__(range(256))])
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(originals).latent_dist.mode()).sample.clamp(-1, 1)
    sizes = {
        key: sum(p.numel() for p in parts[key].parameters()) / 1e6 for key in ("unet", "vae", "text_encoder")
    }
    with atomic_folder(ZOO / name) as folder:
        for key in ("unet", "vae", "text_encoder"):
            parts[key].half()
        pipe.save_pretrained(folder)
        # Transformers loads a model in the type that its config names, Diffusers in float32 unless told
        # otherwise: without this the parts of a pipeline loaded by its path alone would not fit together.
        config_file = folder / "text_encoder" / "config.json"
        save_json(config_file, {**load_json(config_file), "dtype": "float32"})
        shipped = DiffusionPipeline.from_pretrained(folder)
        shipped.set_progress_bar_config(disable=True)
        half = drawn(shipped)
        save_png(grid(half, columns=6, scale=3), checkpoint.parent / f"{name}.png")
        reference = Reference.load(f"{settings['dataset_name']}:test", shipped)
        floor = Reference.load(f"{settings['dataset_name']}:unseen", shipped)
        judged: dict[str, Any] = {
            "num_inference_steps": ddim_steps,
            "guidance_scale": guidance,
            "evaluator": load_evaluator(),
        }
        figures = {
            split.split: quality(
                shipped,
                shipped.scheduler,
                num_images=prompts,
                reference=None,
                metrics=("retrieval",),
                seed=1_000_000,
                prompt=list(split.captions[:prompts]),
                **judged,
            )
            for split in (test, unseen)
        }
        distance = quality(
            shipped,
            shipped.scheduler,
            num_images=count,
            reference=reference,
            seed=2_000_000,
            prompt=list(test.captions[:count]),
            **judged,
        )
        for k in range(examples):
            save_png(to_pil(test[k]["images"]), folder / "examples" / f"{k:02d}.png")
        (folder / "examples" / "captions.txt").write_text("\n".join(test.captions[:examples]) + "\n", "utf-8")
        steps = load_json(checkpoint / "state.json")["step"]
        config = parts["unet"].config
        card = CARD.format(
            name=name,
            description=description,
            limits=limits,
            dataset=settings["dataset_name"],
            data_license=test.license,
            citation=test.citation,
            parameters=sizes["unet"],
            vae_parameters=sizes["vae"],
            text_parameters=sizes["text_encoder"],
            latent=f"{config.in_channels}x{config.sample_size}x{config.sample_size}",
            prediction=settings["prediction_type"],
            psnr=f"{psnr(decoded, originals):.1f} dB",
            recipe=recipe.name,
            seed=settings["seed"],
            steps=steps,
            earlier=f", after {earlier_steps:,} of the trainings that it started from"
            if earlier_steps
            else "",
            images=(steps + earlier_steps) * settings["train_batch_size"],
            batch=settings["train_batch_size"],
            ddim=ddim_steps,
            guidance=guidance,
            frechet=distance["frechet_efficientnet_lite0"],
            count=count,
            floor=float(frechet_distance(reference.features.moments, floor.features.moments)),
            seen_top1=figures["test"]["retrieval_top1"],
            seen_top5=figures["test"]["retrieval_top5"],
            unseen_top1=figures["unseen"]["retrieval_top1"],
            unseen_top5=figures["unseen"]["retrieval_top5"],
            half=float((half - full).abs().max()),
            half_mean=float((half - full).abs().mean()),
            examples=examples,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    typer.run(main)
