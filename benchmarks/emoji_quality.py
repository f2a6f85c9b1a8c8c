"""How well the shipped `emoji` model draws what it is asked for, over guidance scales and samplers.

Prompts are the captions of the data set's "test" split (compositions that training saw, in other draws)
and of "unseen" (each with a composition that it never saw). Judged by `emoji-evaluator`, which shares nothing
with the model: retrieval is the share of images that find their own caption among 100 (chance: top-5 5 %);
concepts are the shares of named subjects, colours, backgrounds and styles that the classifier finds. Real
images of the same captions stand beside as what the judge itself can do.

    python benchmarks/emoji_quality.py [--model emoji] [--parts picture real guidance samplers]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, Cells

from dmkit import data, zoo
from dmkit.data import scenes
from dmkit.evaluation import Reference, load_evaluator, quality
from dmkit.images import grid, save_png
from dmkit.metrics import evaluate_prompts
from dmkit.metrics.prompts import concept_accuracy
from dmkit.sampling import generate
from dmkit.schedulers.registry import build

GUIDANCE = (1.0, 2.0, 3.0, 5.0, 8.0)
SPLITS = ("test", "unseen")
STEPS = 20
PROMPTS = 200
SAMPLES = 2000
SAMPLERS = {
    "ddim": {},
    "dpm++": {},
    "pndm": {},
    "unipc": {},
    "bdia": {"gamma": 0.5},
    # On latents of unit variance the published rule has no information: this is its warning's case.
    "ts-ddim": {"time_shift_allow_latents": True},
    "ts-ddim (marginal)": {"time_shift_allow_latents": True, "time_shift_variance": "marginal"},
    "es-ddim": {"epsilon_scaling": 0.006},
}
PICTURED = (
    *("a red heart", "a blue heart", "a green heart on a yellow background", "a noto drawing of a cat"),
    *("a twemoji drawing of a cat", "a purple cat", "a dog", "a panda", "a penguin on a blue background"),
    *("an owl", "a fox", "a red fish", "a pizza", "a hamburger", "a green apple", "a banana"),
    *("a birthday cake", "coffee", "a car", "a yellow car", "a rocket", "a sailboat", "a train", "a bicycle"),
    *("a house", "a castle", "a clock", "a moon on a black background", "a star", "a rainbow"),
    *("a small key in the top left", "a small bell in the bottom right", "a cat and a heart"),
    *("a smiling face", "an angry face", "a robot"),
)


def real(cells: Cells, evaluator: Any) -> None:
    """What the judge says of real images."""
    for split in SPLITS:
        images = data.load("emoji", split=split)
        present = [scenes.scene_at(split, k)[0].concepts() for k in range(len(images))]

        def measure(images: Any = images, present: Any = present) -> dict[str, Any]:
            reading = evaluator.read(images.images_uint8())
            found = concept_accuracy(evaluator, reading, present)
            kinds = scenes.concepts()
            by_kind = {
                kind: statistics.mean(a.balanced for name, a in found.items() if kinds[name] == kind)
                for kind in dict.fromkeys(kinds.values())
            }
            return {
                **evaluate_prompts(evaluator, reading, images.captions),
                **{f"balanced_accuracy_{kind}": value for kind, value in by_kind.items()},
                "worst_concepts": {
                    name: round(a.balanced, 3)
                    for name, a in sorted(found.items(), key=lambda item: item[1].balanced)[:10]
                },
            }

        cells.once(f"real/{split}", measure)


def guidance(cells: Cells, pipe: Any, evaluator: Any, reference: Reference) -> None:
    """Prompt figures on 200 captions of each split, and the Fréchet distance of 2,000 samples."""
    scheduler = build("ddim", pipe.scheduler.config)
    for split in SPLITS:
        captions = data.load("emoji", split=split).captions
        for scale in GUIDANCE:
            cells.once(
                f"guidance/{split}/{scale:g}",
                lambda scale=scale, captions=captions: quality(
                    pipe,
                    scheduler,
                    STEPS,
                    PROMPTS,
                    None,
                    metrics=("prompt_score", "retrieval", "concepts"),
                    seed=1_000_000,
                    prompt=captions[:PROMPTS],
                    evaluator=evaluator,
                    guidance_scale=scale,
                ),
            )
    captions = data.load("emoji", split="test").captions
    for scale in GUIDANCE:
        cells.once(
            f"frechet/{scale:g}",
            lambda scale=scale: quality(
                pipe,
                scheduler,
                STEPS,
                SAMPLES,
                reference,
                metrics=("frechet", "kid"),
                seed=2_000_000,
                prompt=captions[:SAMPLES],
                guidance_scale=scale,
            ),
        )


def samplers(cells: Cells, pipe: Any, evaluator: Any, reference: Reference, scale: float) -> None:
    """Every sampler at 10 steps: the same 500 captions, seeds and guidance."""
    captions = data.load("emoji", split="test").captions[:500]
    variance = cells.once("latents", lambda: latent_variance(pipe))["within_image"]
    for name, settings in SAMPLERS.items():
        more = {"time_shift_data_variance": variance} if "marginal" in name else {}

        def measure(name: str = name, settings: Any = settings, more: Any = more) -> dict[str, Any]:
            scheduler = build(name.split(" ")[0], pipe.scheduler.config, **settings, **more)
            return quality(
                pipe,
                scheduler,
                10,
                500,
                reference,
                metrics=("frechet", "prompt_score", "retrieval"),
                seed=3_000_000,
                prompt=captions,
                evaluator=evaluator,
                guidance_scale=scale,
            )

        cells.once(f"samplers/{name}", measure)


@torch.no_grad()
def latent_variance(pipe: Any) -> dict[str, float]:
    """Variance of scaled latents: of all numbers, and the mean within an image (Time-Shift's v_0)."""
    images = data.load("emoji", split="train").images_uint8(range(2000)).float() / 127.5 - 1
    means = torch.cat(
        [pipe.vae.encode(part.to(pipe.vae.dtype)).latent_dist.mean for part in images.split(200)]
    )
    latents = means.float() * pipe.vae.config.scaling_factor
    return {"overall": float(latents.var()), "within_image": float(latents.flatten(1).var(dim=1).mean())}


def picture(pipe: Any, folder: Path) -> None:
    """A 6x6 grid of prompts for each guidance scale."""
    scheduler = build("ddim", pipe.scheduler.config)
    for scale in (1.0, 3.0, 5.0, 8.0):
        images = generate(
            pipe, scheduler, STEPS, range(len(PICTURED)), prompt=list(PICTURED), guidance_scale=scale
        )
        save_png(grid(images, columns=6, scale=4), folder / f"emoji_grid_{scale:g}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--evaluator", default="emoji-evaluator")
    parser.add_argument("--parts", nargs="+", default=["picture", "real", "guidance", "samplers"])
    parser.add_argument("--guidance", type=float, default=3.0, help="Of the table of samplers.")
    arguments = parser.parse_args()
    pipe = zoo.load(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    cells = Cells("emoji_quality", {"what": __doc__.split("\n\n")[0].replace("\n", " "), "steps": STEPS})
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "picture" in arguments.parts:
        picture(pipe, RESULTS)
    evaluator = load_evaluator(arguments.evaluator)
    if "real" in arguments.parts:
        real(cells, evaluator)
    reference = Reference.load("emoji:test", pipe)
    if "guidance" in arguments.parts:
        guidance(cells, pipe, evaluator, reference)
    if "samplers" in arguments.parts:
        samplers(cells, pipe, evaluator, reference, arguments.guidance)


if __name__ == "__main__":
    main()
