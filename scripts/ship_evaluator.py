"""Makes the zoo entry of a trained evaluator of prompts: half-precision heads and a measured card.

    python scripts/ship_evaluator.py outputs/emoji-evaluator --recipe scripts/recipes/emoji-evaluator.yaml

What the card says is measured with the weights that ship, on real scenes that training never saw.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
import yaml

from dmkit import data
from dmkit._files import atomic_folder
from dmkit.data import scenes
from dmkit.data.scenes import Scene
from dmkit.metrics import PromptEvaluator, concept_accuracy, retrieval
from dmkit.metrics.evaluator import Reading
from dmkit.metrics.prompts import concept_targets
from dmkit.training.evaluating import judged_scene

ZOO = Path(__file__).parents[1] / "dmkit" / "zoo"

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [image-text-matching]
dataset: emoji
---
# {name}

The judge of prompts for `emoji`: says how well an image fits a text, and names the concepts in it.

| | |
| --- | --- |
| image side | EfficientNet-Lite0 at {image_size} px (frozen, from its package), not pooled; mean colours |
| text side | MiniLM sentence embeddings (frozen, from its package) |
| stored | heads on both and for {concepts} concepts: {parameters:.2f} M float16 parameters, safetensors |
| data | {num_scenes:,} captioned emoji scenes at {resolution} px, half with two things |
| art | {data_license} |
| weights | Apache-2.0; EfficientNet-Lite0 and MiniLM are Apache-2.0 too |
| recipe | `scripts/train_evaluator.py`, `scripts/recipes/{recipe}`: seed {seed}, {steps:,} steps of {batch} |

It shares neither weights, seed nor architecture with the CLIP that conditions the text-to-image model, and is
never used to train one. Unlike that model it has learnt every composition, or it would call a good picture of
a new one wrong.

```python
import dmkit.zoo
from dmkit.metrics import PromptEvaluator, retrieval

evaluator = PromptEvaluator.from_pretrained(dmkit.zoo.path("{name}"))
evaluator.score(images, prompts)  # images (B, 3, H, W) in [-1, 1] -> (B,) cosines
retrieval(evaluator, images, prompts)  # {{"top1": …, "top5": …}} among 100 prompts
```

It needs `pip install 'dmkit[metrics]'`.

## How well it judges real images

On those scenes of the splits `test` ({test:,}) and `unseen` ({unseen:,}) that are none of its own.

{retrieval}

Concepts, both splits together, at a threshold of 1/2. Balanced accuracy is the mean of the shares of images
with the concept and without it that are told right; "least" is the worst concept of the kind.

{kinds}

The ten worst: {worst}.

Of the concepts that are there, the share that is found:

{layouts}

How often an image scores higher with its caption than with the same caption in which one thing is changed
(chance: 50 %):

{pairs}

## Known limits

- Where the table of changed captions is near chance, do not read scores: MiniLM hardly tells "a star to the
  left of a key" from "a key to the left of a star".
- It knows flat scenes of emoji at {resolution} px; of other images and other words it says nothing.
- Another prompt among the 100 may say the same in other words, so even real images do not reach 100 % top-1.

Credits: {citation}
EfficientNet-Lite0: M. Tan, Q. Le, arXiv:1905.11946.
all-MiniLM-L6-v2: N. Reimers, I. Gurevych, arXiv:1908.10084.
"""

Change = Callable[[Scene, random.Random], Scene | None]


def _other(dice: random.Random, choices: Sequence[str], than: str | None) -> str:
    return dice.choice([choice for choice in choices if choice != than])


def _subject(scene: Scene, dice: random.Random) -> Scene:
    thing, *rest = scene.things
    choices = tuple(scenes.COLOURABLE if thing.colour else scenes.SUBJECTS)
    changed = replace(thing, subject=_other(dice, choices, thing.subject))
    return replace(scene, things=(changed, *rest))


def _colour(scene: Scene, dice: random.Random) -> Scene | None:
    thing, *rest = scene.things
    if not thing.colour:
        return None
    changed = replace(thing, colour=_other(dice, tuple(scenes.COLOURS), thing.colour))
    return replace(scene, things=(changed, *rest))


def _background(scene: Scene, dice: random.Random) -> Scene | None:
    choices = tuple(scenes.BACKGROUNDS)[1:]  # white often goes without saying
    if scene.background not in choices:
        return None
    return replace(scene, background=_other(dice, choices, scene.background))


def _style(scene: Scene, dice: random.Random) -> Scene:
    return replace(scene, style=_other(dice, tuple(scenes.STYLES), scene.style))


def _place(scene: Scene, dice: random.Random) -> Scene | None:
    return replace(scene, place=_other(dice, scenes.PLACES, scene.place)) if scene.place else None


def _order(scene: Scene, dice: random.Random) -> Scene | None:
    return replace(scene, things=scene.things[::-1]) if len(scene.things) == 2 else None


CHANGES: dict[str, Change] = {
    "subject": _subject,
    "colour": _colour,
    "background": _background,
    "style": _style,
    "place": _place,
    "left and right": _order,
}


def changed_captions(drawn: Sequence[Scene], change: Change) -> tuple[list[int], list[str], list[str]]:
    """Which scenes can be changed so, their captions, and those of what they are not."""
    rows, right, wrong = [], [], []
    for k, scene in enumerate(drawn):
        changed = change(scene, random.Random(k))
        if changed is None:
            continue
        # The same dice: the same words but for the change. Some captions do not say what was changed.
        own, other = (scenes.caption(one, random.Random(k)) for one in (scene, changed))
        if own != other and (change is not _order or re.search("the (left|right) of", own)):
            rows.append(k)
            right.append(own)
            wrong.append(other)
    return rows, right, wrong


def preference(evaluator: PromptEvaluator, reading: Reading, drawn: Sequence[Scene], change: Change) -> float:
    """How often an image scores higher with its caption than with a changed one."""
    rows, right, wrong = changed_captions(drawn, change)
    mine = Reading(reading.embeddings[rows], reading.concepts[rows])
    return (evaluator.score(mine, right) > evaluator.score(mine, wrong)).double().mean().item()


def layout(scene: Scene) -> str:
    return "two things" if len(scene.things) == 2 else "one small" if scene.place else "one large"


def found_by_layout(evaluator: PromptEvaluator, reading: Reading, drawn: Sequence[Scene]) -> list[list[str]]:
    """For each layout, the share of the concepts of each kind that is found."""
    rows = []
    for name in ("one large", "one small", "two things"):
        here = [k for k, scene in enumerate(drawn) if layout(scene) == name]
        present = concept_targets(evaluator.concept_names, [drawn[k].concepts() for k in here]).bool()
        found = (reading.concepts[here] >= 0.5) & present
        cells = [name, f"{len(here):,}"]
        for kind in dict.fromkeys(evaluator.concept_kinds.values()):
            columns = torch.tensor([other == kind for other in evaluator.concept_kinds.values()])
            cells.append(percent((found[:, columns].sum() / present[:, columns].sum()).item()))
        rows.append(cells)
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main(
    trained: Annotated[Path, typer.Argument(help="Folder of the trained evaluator.", exists=True)],
    recipe: Annotated[Path, typer.Option(help="The recipe of the training.", exists=True)],
    name: Annotated[str, typer.Option(help="Name in the zoo.")] = "emoji-evaluator",
) -> None:
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    own = {judged_scene(k)[0] for k in range(settings["num_scenes"])}
    drawn = dict[str, list[Scene]]()
    splits = dict[str, data.ImageDataset]()
    for split in ("test", "unseen"):
        every = [scenes.scene_at(split, k)[0] for k in range(scenes.LENGTHS[split])]
        new = [k for k, scene in enumerate(every) if scene not in own]
        drawn[split] = [every[k] for k in new]
        splits[split] = data.load("emoji", split=split, resolution=settings["resolution"]).select(new)
    with atomic_folder(ZOO / name) as folder:
        PromptEvaluator.from_pretrained(trained, use_safetensors=True).half().save_pretrained(folder)
        evaluator = PromptEvaluator.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
        readings = {split: evaluator.read(dataset) for split, dataset in splits.items()}
        found = {s: retrieval(evaluator, readings[s], list(splits[s].captions or ())) for s in splits}
        both = Reading.joined(list(readings.values()))
        everything = [scene for split in splits for scene in drawn[split]]
        accuracy = concept_accuracy(evaluator, both, [scene.concepts() for scene in everything])
        kinds = dict[str, list[str]]()
        for concept, kind in scenes.concepts().items():
            kinds.setdefault(kind, []).append(concept)
        by_kind = []
        for kind, concepts in kinds.items():
            here = [accuracy[concept] for concept in concepts]
            balanced = [one.balanced for one in here]
            by_kind.append(
                (
                    *(kind, len(here), percent(mean(balanced)), percent(min(balanced))),
                    *(percent(mean(one.plain for one in here)), percent(min(one.plain for one in here))),
                )
            )
        worst = sorted(accuracy, key=lambda concept: accuracy[concept].balanced)[:10]
        test = splits["test"]
        card = CARD.format(
            name=name,
            image_size=settings["image_size"],
            concepts=len(evaluator.concept_names),
            parameters=evaluator.num_parameters() / 1e6,
            num_scenes=settings["num_scenes"],
            resolution=settings["resolution"],
            data_license=test.license,
            recipe=recipe.name,
            seed=settings["seed"],
            steps=settings["max_train_steps"],
            batch=settings["train_batch_size"],
            test=len(splits["test"]),
            unseen=len(splits["unseen"]),
            citation=test.citation,
            retrieval=table(
                ("own caption among 100", "top 1", "top 5"),
                [(split, percent(row["top1"]), percent(row["top5"])) for split, row in found.items()],
            ),
            kinds=table(
                ("kind", "concepts", "balanced, mean", "balanced, least", "plain, mean", "plain, least"),
                by_kind,
            ),
            worst=", ".join(f"{concept} {percent(accuracy[concept].balanced)}" for concept in worst),
            layouts=table(("scenes with", "how many", *kinds), found_by_layout(evaluator, both, everything)),
            pairs=table(
                ("what is changed", *splits),
                [
                    (what, *(percent(preference(evaluator, readings[s], drawn[s], change)) for s in splits))
                    for what, change in CHANGES.items()
                ],
            ),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    typer.run(main)
