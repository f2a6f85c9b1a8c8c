"""Makes a zoo entry of a distilled student: half-precision weights, a card with figures beside the teacher's.

    python scripts/ship_one_step.py outputs/emoji-one-step/checkpoint-2000 --name emoji-one-step \\
        --recipe scripts/recipes/one-step-emoji.yaml

The averaged student is shipped with its teacher's autoencoder and text encoder; the learning teacher is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from diffusers import DiffusionPipeline
from diffusers import UNet2DConditionModel as UNet

from dmkit import data, zoo
from dmkit._files import atomic_folder, load_json, save_json
from dmkit.distillation.process import one_step_scheduler
from dmkit.evaluation import Reference, load_evaluator, quality
from dmkit.schedulers.registry import build

ZOO = Path(__file__).parents[1] / "dmkit" / "zoo"

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [text-to-image, stable-diffusion, one-step]
base_model: {teacher}
dataset: {dataset}
---
# {name}

`{teacher}` in one step: a student distilled by PG-SB (Nguyen et al., arXiv 2412.02687), without images.

| | student, one step | `{teacher}`, 20 steps, guidance {guidance:g} |
| --- | --- | --- |
{rows}

{prompts} captions of each kind, `emoji-evaluator`; the distance of {count:,} samples to held-out images
is one of EfficientNet-Lite0 features, not an FID.

```python
from diffusers import DiffusionPipeline

import dmkit.zoo

pipe = DiffusionPipeline.from_pretrained(dmkit.zoo.path("{name}"))
image = pipe("a red heart", num_inference_steps=1, guidance_scale=1).images[0]
```

Recipe: `scripts/recipes/{recipe}`, seed {seed}, {steps:,} steps of {batch} prompts; averaged weights (EMA),
float16 safetensors, Apache-2.0. Its scheduler is DDIM with `trailing` spacing and `set_alpha_to_one`.

Known limits: {limits}

Credits: {citation}
"""

ROWS = {
    "prompt_score": "mean cosine with the prompt, compositions seen",
    "retrieval_top1": "right caption among 100, top-1",
    "retrieval_top5": "right caption among 100, top-5",
    "unseen_prompt_score": "mean cosine, compositions never seen",
    "unseen_retrieval_top5": "top-5, compositions never seen",
    "frechet_efficientnet_lite0": "Fréchet distance",
}


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint-N folder of a distillation.", exists=True)],
    name: Annotated[str, typer.Option(help="Name in the zoo.")],
    recipe: Annotated[Path, typer.Option(help="The recipe of the distillation.", exists=True)],
    guidance: Annotated[float, typer.Option(help="Guidance scale of the teacher's figures.")] = 3.0,
    prompts: Annotated[int, typer.Option(help="Captions of each kind.")] = 200,
    count: Annotated[int, typer.Option(help="Samples for the Fréchet distance.")] = 1000,
    limits: Annotated[str, typer.Option()] = "softer outlines and less variety than its teacher's images.",
    replace: Annotated[bool, typer.Option(help="Replace an entry of this name.")] = False,
) -> None:
    if (ZOO / name).exists() and not replace:
        raise typer.BadParameter(f"{ZOO / name} exists; say --replace.")
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    source, teacher = settings["dataset_name"], settings["pretrained_model_name_or_path"]
    pipe = zoo.load(teacher)
    pipe.unet = UNet.from_pretrained(checkpoint / "student_ema")
    pipe.scheduler = one_step_scheduler(pipe.scheduler)
    with atomic_folder(ZOO / name) as made:
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.half()
        pipe.save_pretrained(made)
        # As in scripts/ship_text_to_image.py: all parts load in one type.
        config = made / "text_encoder" / "config.json"
        save_json(config, {**load_json(config), "dtype": "float32"})
        student = DiffusionPipeline.from_pretrained(made)
        figures = [
            measure(student, student.scheduler, 1, 1.0, source, prompts, count),
            measure(
                full := zoo.load(teacher),
                build("ddim", full.scheduler.config),
                20,
                guidance,
                source,
                prompts,
                count,
            ),
        ]
        card = CARD.format(
            name=name,
            teacher=teacher,
            dataset=source,
            guidance=guidance,
            prompts=prompts,
            count=count,
            rows="\n".join(
                f"| {what} | {figures[0][key]:.4g} | {figures[1][key]:.4g} |" for key, what in ROWS.items()
            ),
            recipe=recipe.name,
            seed=settings["seed"],
            steps=load_json(checkpoint / "state.json")["step"],
            batch=settings["train_batch_size"],
            limits=limits,
            citation=data.load(source, split="test").citation,
        )
        (made / "README.md").write_text(card, encoding="utf-8")
    print(card)


def measure(
    pipe: Any, scheduler: Any, steps: int, guidance: float, source: str, prompts: int, count: int
) -> dict[str, float]:
    """Prompt figures on captions of seen and of unseen compositions, and the distance to held-out images."""
    pipe.set_progress_bar_config(disable=True)
    evaluator, found = load_evaluator(), {}
    for split, prefix in (("test", ""), ("unseen", "unseen_")):
        captions = data.load(source, split=split).captions[:prompts]
        judged = quality(
            pipe,
            scheduler,
            steps,
            prompts,
            None,
            metrics=("prompt_score", "retrieval"),
            seed=1_000_000,
            prompt=captions,
            evaluator=evaluator,
            guidance_scale=guidance,
        )
        found |= {prefix + key: value for key, value in judged.items()}
    distance = quality(
        pipe,
        scheduler,
        steps,
        count,
        Reference.load(f"{source}:test", pipe),
        metrics=("frechet",),
        seed=2_000_000,
        prompt=data.load(source, split="test").captions[:count],
        guidance_scale=guidance,
    )
    return found | distance


if __name__ == "__main__":
    typer.run(main)
