"""How well a concept is gone from a model, and what else has changed: figures of the same prompts and seeds
before and after.

    concept_share(evaluator, after, "heart")  # 0.04: the judge still finds a heart in 4 % of the images
    drift(before_others, after_others, prompts, evaluator)  # {"mse": …, "prompt_score_change": …, …}

The protocol of M. Lyu et al., arXiv:2312.16145, section 5: erasure is read off images of the erased concept,
side effects off images of other concepts, against the model's own images from before (not against real ones).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..errors import unknown_name
from .evaluate import FeatureSet, describe
from .evaluator import PromptEvaluator, Reading
from .frechet import frechet_distance
from .prompts import concept_recall


def concept_share(
    evaluator: PromptEvaluator, images: Tensor | Reading, concept: str | Sequence[str]
) -> float:
    """Share, in [0, 1], of the images in which the judge finds a concept with probability 1/2 or more.

    Args:
        evaluator: the judge.
        images: (N, C, H, W) in [-1, 1], or what `evaluator.read` made of them.
        concept: a name of `evaluator.concept_names`, or one for each image.

    Raises:
        ValueError: an unknown concept (the message names the near one), or not one for each image.
        Others: as `PromptEvaluator.read`.
    """
    reading = evaluator.read(images)
    wanted = [concept] * len(reading) if isinstance(concept, str) else list(concept)
    if len(wanted) != len(reading):
        raise ValueError(f"{len(reading)} images need as many concepts, not {len(wanted)}.")
    columns = {name: k for k, name in enumerate(evaluator.concept_names)}
    for name in wanted:
        if name not in columns:
            raise unknown_name("concept", name, columns)
    found = reading.concepts[range(len(wanted)), [columns[name] for name in wanted]] >= 0.5
    return found.double().mean().item()


def drift(
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    evaluator: PromptEvaluator,
    extractor: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """What an edit of a model did to images that it should have left alone.

    Args:
        before: (N, C, H, W) in [-1, 1], of the model before the edit.
        after: the same prompts and seeds after it.
        prompts: the N prompts.
        evaluator: the judge.
        extractor: features of the Fréchet distance, as for `dmkit.metrics.describe`.

    Returns:
        `mse`: mean squared difference of pixels in [0, 1]; `prompt_score_before` and `prompt_score_change`:
        mean cosine of images with their prompts; `concepts_<kind>_before` and `…_change`: shares of the
        concepts named by the prompts that are found; `frechet_<extractor>`: distance between the two sets.
        All changes are after less before.

    Raises:
        ValueError: images of other shapes, or not one prompt for each image.
        Others: as `PromptEvaluator.read` and `dmkit.metrics.describe`.
    """
    if before.shape != after.shape:
        raise ValueError(f"Images {tuple(before.shape)} and {tuple(after.shape)} do not compare.")
    result = {"mse": (before.double() - after.double()).square().mean().item() / 4}
    first, second = (_judged(evaluator, images, prompts) for images in (before, after))
    for name, value in first.items():
        result |= {f"{name}_before": value, f"{name}_change": second[name] - value}
    sets: list[FeatureSet] = [describe(images, extractor, keep_features=False) for images in (before, after)]
    distance = frechet_distance(sets[1].moments, sets[0].moments)
    return {**result, f"frechet_{sets[0].extractor}": float(distance)}


def _judged(evaluator: PromptEvaluator, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    reading = evaluator.read(images)
    shares = concept_recall(evaluator, reading, prompts)
    score = evaluator.score(reading, prompts).double().mean().item()
    return {"prompt_score": score, **{f"concepts_{kind}": share for kind, share in shares.items()}}
