"""Whether a concept is erased from a text-to-image model, and what that did to everything else.

    found = evaluate_erasure(before, after, load_evaluator(), ["heart"], captions)
    found.figures  # {"share_before": 0.97, "share_after": 0.04, "drift_mse": …, …}

`before` and `after` draw the same prompts from the same seeds with the model as it was and as it is. Prompts
that name an erased concept measure the erasure, the others the drift (M. Lyu et al., arXiv 2312.16145,
section 5; there with CLIP scores and FID, here with a classifier and the features at hand).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import unknown_name
from ..metrics import PromptEvaluator, concept_share, drift, named_concepts
from ..sampling import generate

# (prompts, seeds) -> images (N, C, H, W) in [-1, 1]
Draw = Callable[[Sequence[str], Sequence[int]], Tensor]


def drawing(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    *,
    call: Callable[..., Any] | None = None,
    **arguments: Any,
) -> Draw:
    """What draws with a pipeline; arguments as for `dmkit.sampling.generate`."""
    pipe.set_progress_bar_config(disable=True)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return generate(pipe, scheduler, num_inference_steps, seeds, prompt=prompts, call=call, **arguments)

    return draw


@dataclass(frozen=True)
class ErasureReport:
    """What was measured, and the images of it, row by row the same prompt and seed.

    Attributes:
        figures: `share_before`, `share_after`: share of images of erased concepts in which the judge finds
            theirs; with a surrogate also `surrogate_before`, `surrogate_after`; and of the other prompts what
            `dmkit.metrics.drift` returns, each under `drift_…`.
        prompts: those that name an erased concept.
        before, after: (N, C, H, W) in [-1, 1], their images.
        other_prompts: those that name none.
        others_before, others_after: theirs.
    """

    figures: dict[str, float]
    prompts: list[str]
    before: Tensor
    after: Tensor
    other_prompts: list[str]
    others_before: Tensor
    others_after: Tensor


def prompts_about(
    captions: Sequence[str], concepts: Sequence[str], evaluator: PromptEvaluator
) -> tuple[list[tuple[str, str]], list[str]]:
    """Captions that name exactly one of some concepts, each with that concept; and those that name none.

    Raises:
        ValueError: a concept that the judge does not know; the message names the near one.
    """
    _check_known(concepts, evaluator)
    kinds = evaluator.concept_kinds
    about, others = [], []
    for caption in captions:
        named = named_concepts(caption, kinds) & set(concepts)
        if len(named) == 1:
            about.append((caption, named.pop()))
        elif not named:
            others.append(caption)
    return about, others


def evaluate_erasure(
    before: Draw,
    after: Draw,
    evaluator: PromptEvaluator,
    concepts: Sequence[str],
    captions: Sequence[str],
    *,
    num_images: int = 100,
    num_others: int = 200,
    surrogate: str | None = None,
    seed: int = 0,
) -> ErasureReport:
    """Draws and measures.

    Args:
        before: draws images with the model as it was.
        after: with the concepts erased.
        evaluator: the judge.
        concepts: the erased concepts, by the judge's names.
        captions: prompts to choose from.
        num_images: images of prompts that name an erased concept; a short list of prompts starts over.
        num_others: images of prompts that name none.
        surrogate: what the concepts should have become, by the judge's name.
        seed: of the choice; image k has seed `seed + k`.

    Raises:
        ValueError: an unknown concept, or no captions of one of the two kinds.
    """
    about, others = prompts_about(captions, concepts, evaluator)
    if surrogate is not None:
        _check_known([surrogate], evaluator)
    if not about or not others:
        what = ", ".join(concepts)
        raise ValueError(f"{'No' if not about else 'All'} captions name {what}; both kinds are needed.")
    dice = random.Random(seed)
    chosen, rest = _some(about, num_images, dice), _some(others, num_others, dice)
    prompts, wanted = [prompt for prompt, _ in chosen], [concept for _, concept in chosen]
    seeds, other_seeds = (
        range(seed, seed + num_images),
        range(seed + num_images, seed + num_images + num_others),
    )
    images = before(prompts, seeds), after(prompts, seeds)
    figures = {
        f"share_{when}": concept_share(evaluator, drawn, wanted)
        for when, drawn in zip(("before", "after"), images, strict=True)
    }
    if surrogate is not None:
        for when, drawn in zip(("before", "after"), images, strict=True):
            figures[f"surrogate_{when}"] = concept_share(evaluator, drawn, surrogate)
    other_images = before(rest, other_seeds), after(rest, other_seeds)
    drifted = drift(*other_images, rest, evaluator)
    figures |= {f"drift_{name}": value for name, value in drifted.items()}
    return ErasureReport(figures, prompts, *images, rest, *other_images)


def _check_known(concepts: Sequence[str], evaluator: PromptEvaluator) -> None:
    for concept in concepts:
        if concept not in evaluator.concept_kinds:
            raise unknown_name("concept", concept, evaluator.concept_kinds)


def _some(items: list, count: int, dice: random.Random) -> list:
    """So many of a list in random order, over and over where it is short."""
    order = dice.sample(items, len(items))
    return [order[k % len(order)] for k in range(count)]
