"""Erasing concepts from `emoji`: SPM, its ablations, and ESD and UCE beside it.

For each concept of scripts/recipes/adapters-emoji.yaml and each seed: share of 100 images of prompts that
name the concept in which `emoji-evaluator` finds it, before and after; and, on 240 images of other prompts of
the data set, what changed (mean squared error of pixels, prompt score, Fréchet distance between the model's
own images before and after). 20 DDIM steps, guidance 3, the same seeds for all methods. SPM's ablation is
anchoring in training times transport in use.

"stack": three adapters at once. "time": sampling with adapters over sampling without, taking turns.

    python benchmarks/emoji_erasing.py [--concepts heart cat …] [--seeds 0 1 2] [--parts erase stack time]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from _results import Cells
from torch import Tensor

from dmkit import zoo
from dmkit.adapters import SPM
from dmkit.adapters.erasing.configure import erase, from_recipe
from dmkit.adapters.evaluating import Draw, drawing, evaluate_erasure
from dmkit.data import scenes
from dmkit.evaluation import load_evaluator
from dmkit.schedulers.registry import build

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "scripts" / "recipes"
OUT = ROOT / "outputs" / "erasing"
STEPS, GUIDANCE, IMAGES, OTHERS = 20, 3.0, 100, 240
# How it is trained, and whether transport is on in use.
METHODS = {
    "spm": ("spm", True),
    "spm, no transport": ("spm", False),
    "spm, no anchoring": ("spm-bare", True),
    "spm, neither": ("spm-bare", False),
    "esd-x": ("esd-x", None),
    "esd-u": ("esd-u", None),
    "uce": ("uce", None),
}


@cache
def recipes() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((RECIPES / "adapters-emoji.yaml").read_text(encoding="utf-8"))


@cache
def base() -> Any:
    return zoo.load("emoji")


@cache
def evaluator() -> Any:
    return load_evaluator()


@cache
def captions() -> tuple[str, ...]:
    """Prompts of the training split's compositions with one large subject, none twice."""
    found = (scenes.scene_at("train", k) for k in range(20_000))
    return tuple(dict.fromkeys(text for scene, text in found if len(scene.things) == 1 and not scene.place))


def drawn_by(pipe: Any, call: Any = None) -> Draw:
    return drawing(pipe, build("ddim", pipe.scheduler.config), STEPS, call=call, guidance_scale=GUIDANCE)


@cache
def _before(prompts: tuple[str, ...], seeds: tuple[int, ...]) -> Tensor:
    return drawn_by(base())(prompts, seeds)


def before(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return _before(tuple(prompts), tuple(seeds))


def trained(name: str, how: str, seed: int) -> Path:
    """The folder of an erasure; trained if it is not there."""
    folder = OUT / f"{name}-{how}-{seed}"
    done = folder / (f"{name}.safetensors" if how.startswith("spm") else "model_index.json")
    if done.exists():
        return folder
    flags = {**recipes()[name]["flags"], "method": how.removesuffix("-bare"), "adapter_name": name}
    if how == "spm-bare":
        flags["action"] = "erase"
    recipe = RECIPES / ("esd-emoji.yaml" if how in ("esd-x", "esd-u") else "spm-emoji.yaml")
    started = time.monotonic()
    quiet = {"report_to": "none", "save_images_epochs": 0}
    erase(*from_recipe(recipe, **flags, **quiet, output_dir=str(folder), seed=seed))
    print(f"{folder.name}: trained in {time.monotonic() - started:.0f} s", flush=True)
    return folder


def with_adapters(files: Sequence[Path], transport: bool) -> Draw:
    pipe = zoo.load("emoji")
    adapters = SPM(pipe)
    for file in files:
        adapters.load_spm_weights(file, file.stem.replace(".", "_"))
    return drawn_by(pipe, partial(adapters, facilitated_transport=transport))


def measure(name: str, method: str, seed: int) -> dict[str, float]:
    how, transport = METHODS[method]
    folder = trained(name, how, seed)
    if transport is None:
        after = drawn_by(zoo.load(str(folder)))
    else:
        after = with_adapters([folder / f"{name}.safetensors"], transport)
    found = evaluate_erasure(
        before,
        after,
        evaluator(),
        recipes()[name]["concepts"],
        captions(),
        num_images=IMAGES,
        num_others=OTHERS,
        surrogate=recipes()[name].get("surrogate_concept"),
        seed=1000 * seed,
    )
    return {key: round(value, 5) for key, value in found.figures.items()}


def stack(names: Sequence[str]) -> dict[str, Any]:
    """Several adapters at once: each concept's share, and the drift of all."""
    files = [trained(name, "spm", 0) / f"{name}.safetensors" for name in names]
    after = with_adapters(files, True)
    result: dict[str, Any] = {}
    for name in names:
        concepts = recipes()[name]["concepts"]
        others = [concept for other in names if other != name for concept in recipes()[other]["concepts"]]
        kept = [text for text in captions() if not any(concept in text for concept in others)]
        found = evaluate_erasure(
            before, after, evaluator(), concepts, kept, num_images=IMAGES, num_others=OTHERS
        )
        result[name] = {key: round(value, 5) for key, value in found.figures.items()}
    return result


def times(rounds: int = 15) -> dict[str, dict[str, float]]:
    """Process time of 20 steps over the plain pipeline's, medians of rounds in turn: four images of one
    prompt, and of four prompts, which open the adapters differently.
    """
    one = OUT / "heart-spm-0" / "heart.safetensors"
    pipe = zoo.load("emoji")
    many = SPM(pipe)
    for k in range(10):
        many.load_spm_weights(one, f"copy{k}")
    fused = SPM(zoo.load("emoji"))
    fused.load_spm_weights(one, "heart")
    fused.fuse()
    kinds = {
        "plain": drawn_by(base()),
        "one, transport": with_adapters([one], True),
        "ten, transport": drawn_by(pipe, many),
        "one, fused": drawn_by(fused.pipe),
    }
    several = ["a red heart", "a cat", "a pizza", "a pink dress"]
    result = {}
    for what, prompts in {"one prompt": ["a red heart"] * 4, "four prompts": several}.items():
        spent: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, sample in kinds.items():
                started = time.process_time()
                sample(prompts, range(4))
                spent[kind].append(time.process_time() - started)
        plain = spent.pop("plain")
        result[what] = {
            kind: round(statistics.median(mine / other for mine, other in zip(values, plain, strict=True)), 4)
            for kind, values in spent.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=list(recipes()))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["erase", "stack", "time"])
    arguments = parser.parse_args()
    cells = Cells("emoji_erasing", {"what": __doc__.split("\n\n")[0].replace("\n", " ")})
    for seed in arguments.seeds if "erase" in arguments.parts else ():
        for name in arguments.concepts:
            for method in arguments.methods:
                cells.once(
                    f"erase/{name}/{method}/seed{seed}",
                    lambda n=name, m=method, s=seed: measure(n, m, s),
                )
    if "stack" in arguments.parts:
        cells.once("stack/heart, cat, pink", lambda: stack(["heart", "cat", "pink"]))
    if "time" in arguments.parts:
        cells.once("time", times)


if __name__ == "__main__":
    main()
