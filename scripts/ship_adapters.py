"""Trains and measures the adapters of `adapters/`, and writes their cards.

    python scripts/ship_adapters.py [heart cat …]

What is in `outputs/erasing` already is not trained again. Each adapter becomes a folder with its weights, a
card, a picture of the same prompts and seeds before and after, and `figures.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from dmkit import zoo
from dmkit._files import atomic_folder, save_json
from dmkit.adapters import SPM, read_spm
from dmkit.adapters.erasing.configure import erase, from_recipe
from dmkit.adapters.evaluating import Draw, drawing, evaluate_erasure
from dmkit.data import scenes
from dmkit.evaluation import load_evaluator
from dmkit.images import grid, save_png, side_by_side

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "scripts" / "recipes"
STEPS, GUIDANCE, IMAGES, OTHERS, SHOWN = 20, 3.0, 100, 240, 24

CARD = """---
license: apache-2.0
library_name: dmkit
base_model: {base}
tags: [spm, concept-erasing, lora]
---
# {name}

Erases {erased} from `{base}`{instead}: an SPM, a LoRA of rank {rank} on {layers} layers,
{parameters:,} parameters, {size:.0f} kB.

| | before | after |
| --- | --- | --- |
| images of {erased} in which the judge finds it | {share_before:.0%} | **{share_after:.0%}** |
{surrogate_row}| other prompts: mean cosine with the prompt | {score_before:.3f} | {score_after:.3f} |
| other prompts: subjects that the judge finds | {subjects_before:.0%} | {subjects_after:.0%} |
| other prompts: mean squared error of pixels | | {mse:.5f} |
| other prompts: Fréchet distance to the model's own images | | {frechet:.1f} |

{images} images of training captions with one large subject that name it, {others} of such that do not;
{steps} DDIM steps, guidance {guidance:g}, facilitated transport, `emoji-evaluator`. Left before, right after,
on the same prompts and seeds:

![captions that name it](concept.png)

![other captions](others.png)

```python
from diffusers import DiffusionPipeline

import dmkit.zoo
from dmkit.adapters import SPM

spm = SPM(DiffusionPipeline.from_pretrained(dmkit.zoo.path("{base}")))
spm.load_spm_weights(
    "adapters/{name}/{name}.safetensors",
    adapter_name="{name}",
)
image = spm(
    "{prompt}",
    num_inference_steps={steps},
    guidance_scale={guidance:g},
).images[0]
```

Recipe: `scripts/recipes/spm-emoji.yaml` with {flags}, {iterations} steps, seed {seed}.
Apache-2.0, as the model.
"""


def drawn_by(pipe: Any, call: Any = None) -> Draw:
    return drawing(pipe, pipe.scheduler, STEPS, call=call, guidance_scale=GUIDANCE)


def ship(name: str, entry: dict[str, Any], captions: Sequence[str], seed: int) -> None:
    trained = ROOT / "outputs" / "erasing" / f"{name}-spm-{seed}"
    file = trained / f"{name}.safetensors"
    arguments, training = from_recipe(
        RECIPES / "spm-emoji.yaml",
        **entry["flags"],
        adapter_name=name,
        output_dir=str(trained),
        seed=seed,
    )
    if not file.exists():
        erase(arguments, training)
    base = arguments.pretrained_model_name_or_path
    spm = SPM(zoo.load(base))
    spm.load_spm_weights(file, name)
    found = evaluate_erasure(
        drawn_by(zoo.load(base)),
        drawn_by(spm.pipe, spm),
        load_evaluator(),
        entry["concepts"],
        captions,
        num_images=IMAGES,
        num_others=OTHERS,
        surrogate=entry.get("surrogate_concept"),
        seed=1000 * seed,
    )
    figures, weights = found.figures, read_spm(file)
    surrogate = entry.get("surrogate_concept")
    with atomic_folder(ROOT / "adapters" / name) as folder:
        shutil.copyfile(file, folder / file.name)
        for kind, pair in (
            ("concept", (found.before, found.after)),
            ("others", (found.others_before, found.others_after)),
        ):
            sheets = [grid(images[:SHOWN], columns=6, scale=2) for images in pair]
            save_png(side_by_side(sheets, ["before", "after"]), folder / f"{kind}.png")
        save_json(folder / "figures.json", {key: round(value, 5) for key, value in figures.items()})
        card = CARD.format(
            name=name,
            base=base,
            erased=", ".join(entry["concepts"]),
            instead=f" and puts a {surrogate} in its place" if surrogate else "",
            rank=weights.rank,
            layers=len(weights.layers),
            parameters=sum(layer.down.numel() + layer.up.numel() for layer in weights.layers.values()),
            size=file.stat().st_size / 1000,
            share_before=figures["share_before"],
            share_after=figures["share_after"],
            surrogate_row=(
                f"| … in which it finds a {surrogate} | {figures['surrogate_before']:.0%} | "
                f"{figures['surrogate_after']:.0%} |\n"
                if surrogate
                else ""
            ),
            score_before=figures["drift_prompt_score_before"],
            score_after=figures["drift_prompt_score_before"] + figures["drift_prompt_score_change"],
            subjects_before=figures["drift_concepts_subject_before"],
            subjects_after=figures["drift_concepts_subject_before"]
            + figures["drift_concepts_subject_change"],
            mse=figures["drift_mse"],
            frechet=figures["drift_frechet_efficientnet_lite0"],
            images=IMAGES,
            others=OTHERS,
            steps=STEPS,
            guidance=GUIDANCE,
            prompt=found.prompts[0],
            flags=", ".join(f"`{key}: {value}`" for key, value in entry["flags"].items()),
            iterations=weights.metadata.iterations,
            seed=seed,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{name}: {share(figures)}", flush=True)


def share(figures: dict[str, float]) -> str:
    return f"{figures['share_before']:.2f} -> {figures['share_after']:.2f}, drift {figures['drift_mse']:.5f}"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Of adapters-emoji.yaml; all by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training and figures.")] = 0,
) -> None:
    entries = yaml.safe_load((RECIPES / "adapters-emoji.yaml").read_text(encoding="utf-8"))
    for name in names or entries:
        if name not in entries:
            raise typer.BadParameter(f"{name} is none of {', '.join(entries)}.")
    found = (scenes.scene_at("train", k) for k in range(20_000))
    captions = [text for scene, text in found if len(scene.things) == 1 and not scene.place]
    for name in names or entries:
        ship(name, entries[name], captions, seed)


if __name__ == "__main__":
    typer.run(main)
