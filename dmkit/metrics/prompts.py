"""How well images show what their prompts say, in the eyes of a judge that no text-to-image model is trained
with.

    evaluator = PromptEvaluator.from_pretrained(dmkit.zoo.path("emoji-evaluator"))
    evaluator.score(images, prompts)  # (B,) cosines
    retrieval(evaluator, images, prompts)  # {"top1": …, "top5": …}
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import unknown_name
from .evaluate import Images
from .evaluator import PromptEvaluator, Reading, check_prompts

PROMPT_METRICS = ("prompt_score", "retrieval", "concepts")


def retrieval(
    evaluator: PromptEvaluator,
    images: Images | Reading,
    prompts: Sequence[str],
    candidates: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """How often an image finds its own prompt among others.

    Each image ranks its prompt and `candidates - 1` other distinct ones, drawn from `prompts`, by cosine; a
    tie counts against it. Another prompt may say the same in other words, so even real images miss some.

    Args:
        evaluator: the judge.
        images: N images, as for `PromptEvaluator.read`.
        prompts: the N prompts that they were made from.
        candidates: prompts that each image chooses among; chance finds the right one in 1 of so many.
        seed: of the draw.

    Returns:
        `top1` and `top5`, shares of the images in [0, 1].

    Raises:
        ValueError: not one prompt for each image, or fewer distinct prompts than candidates.
        Others: as `PromptEvaluator.read`.
    """
    check_retrieval(prompts, candidates)
    reading = evaluator.read(images)
    check_prompts(reading, prompts)
    distinct = list(dict.fromkeys(prompts))
    own = torch.tensor([{prompt: k for k, prompt in enumerate(distinct)}[prompt] for prompt in prompts])
    scores = reading.embeddings @ evaluator.embed_texts(distinct).T
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for row, mine in zip(scores, own.tolist(), strict=True):
        others = torch.randperm(len(distinct) - 1, generator=generator)[: candidates - 1]
        others = others + (others >= mine)  # all indices but its own
        ranks.append((row[others] >= row[mine]).sum())
    rank = torch.stack(ranks)
    return {f"top{k}": (rank < k).double().mean().item() for k in (1, 5)}


def check_retrieval(prompts: Sequence[str], candidates: int = 100) -> None:
    """
    Raises:
        ValueError: fewer distinct prompts than candidates, or no choice to make.
    """
    if candidates < 2:
        raise ValueError(f"Retrieval chooses among at least 2 candidates, not {candidates}.")
    if (distinct := len(set(prompts))) < candidates:
        raise ValueError(
            f"Retrieval among {candidates} takes at least {candidates} distinct prompts, not {distinct}."
        )


class ConceptAccuracy(NamedTuple):
    """How well one concept is told, at a threshold of 1/2.

    Attributes:
        balanced: mean of the shares of images with it, and of those without it, that are told right.
        plain: share of all images that are told right.
        support: images with it.
    """

    balanced: float
    plain: float
    support: int


def concept_accuracy(
    evaluator: PromptEvaluator, images: Images | Reading, present: Sequence[Collection[str]]
) -> dict[str, ConceptAccuracy]:
    """The classifier's own accuracy on images whose concepts are known.

    Args:
        evaluator: the judge.
        images: N images, as for `PromptEvaluator.read`.
        present: the names of the concepts in each image.

    Returns:
        Accuracy by concept; concepts that all images have, or none, are left out.

    Raises:
        ValueError: an unknown concept, or not one collection for each image.
        Others: as `PromptEvaluator.read`.
    """
    found = evaluator.concepts(images) >= 0.5
    truth = concept_targets(evaluator.concept_names, present).bool()
    if len(truth) != len(found):
        raise ValueError(f"{len(found)} images need as many sets of concepts, not {len(truth)}.")
    result = {}
    for name, right, has in zip(evaluator.concept_names, (found == truth).T.double(), truth.T, strict=True):
        if has.any() and not has.all():
            balanced = (right[has].mean() + right[~has].mean()) / 2
            result[name] = ConceptAccuracy(balanced.item(), right.mean().item(), int(has.sum()))
    return result


def concept_targets(names: Sequence[str], present: Sequence[Collection[str]]) -> Tensor:
    """uint8 (N, n): 1 where a collection holds the name.

    Raises:
        ValueError: a name that is not known.
    """
    columns = {name: k for k, name in enumerate(names)}
    targets = torch.zeros(len(present), len(names), dtype=torch.uint8)
    for row, here in zip(targets, present, strict=True):
        for name in here:
            if name not in columns:
                raise unknown_name("concept", name, columns)
            row[columns[name]] = 1
    return targets


def named_concepts(prompt: str, concepts: Mapping[str, str]) -> set[str]:
    """Concepts that a prompt names: by whole words, the longest first, each word read once.

    So "an alarm clock on a red background" names an alarm clock and a red background, but neither a clock nor
    red. A style is named by its first word alone ("noto style": "a noto drawing").

    Args:
        prompt: any text.
        concepts: name -> kind, as a `PromptEvaluator`'s `concept_kinds`.
    """
    words = {name.split()[0] if kind == "style" else name: name for name, kind in concepts.items()}
    longest_first = sorted(words, key=len, reverse=True)
    pattern = rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b"
    return {words[match] for match in re.findall(pattern, prompt.lower())}


def concept_recall(
    evaluator: PromptEvaluator, images: Images | Reading, prompts: Sequence[str]
) -> dict[str, float]:
    """Of the concepts that the prompts name, the share that the classifier finds in the images, by kind.

    Args:
        evaluator: the judge.
        images: N images, as for `PromptEvaluator.read`.
        prompts: the N prompts that they were made from; see `named_concepts`.

    Returns:
        Share in [0, 1] by kind of concept; kinds that no prompt names are left out.

    Raises:
        ValueError: not one prompt for each image.
        Others: as `PromptEvaluator.read`.
    """
    reading = evaluator.read(images)
    check_prompts(reading, prompts)
    kinds = evaluator.concept_kinds
    named = [named_concepts(prompt, kinds) for prompt in prompts]
    asked = concept_targets(evaluator.concept_names, named).bool()
    hit = (reading.concepts >= 0.5) & asked
    result = {}
    for kind in dict.fromkeys(kinds.values()):
        columns = torch.tensor([other == kind for other in kinds.values()])
        if total := asked[:, columns].sum().item():
            result[kind] = hit[:, columns].sum().item() / total
    return result


def evaluate_prompts(
    evaluator: PromptEvaluator,
    images: Images | Reading,
    prompts: Sequence[str],
    metrics: Sequence[str] = PROMPT_METRICS,
) -> dict[str, float]:
    """Figures of images against the prompts that they were made from.

    Args:
        evaluator: the judge.
        images: N images, as for `PromptEvaluator.read`.
        prompts: the N prompts.
        metrics: of "prompt_score", "retrieval" and "concepts".

    Returns:
        As asked for: `prompt_score`, the mean cosine, and `prompt_score_stderr`; `retrieval_top1` and
        `retrieval_top5` among 100; `concepts_<kind>` for each kind that the prompts name.

    Raises:
        ValueError: an unknown metric (the message names the near one), or as `retrieval`.
        Others: as `PromptEvaluator.read`.
    """
    for metric in metrics:
        if metric not in PROMPT_METRICS:
            raise unknown_name("metric", metric, PROMPT_METRICS)
    reading, result = evaluator.read(images), dict[str, float]()
    if "prompt_score" in metrics:
        scores = evaluator.score(reading, prompts).double()
        result["prompt_score"] = scores.mean().item()
        result["prompt_score_stderr"] = scores.std().item() / math.sqrt(len(scores))
    if "retrieval" in metrics:
        found = retrieval(evaluator, reading, prompts)
        result |= {f"retrieval_{name}": share for name, share in found.items()}
    if "concepts" in metrics:
        shares = concept_recall(evaluator, reading, prompts)
        result |= {f"concepts_{kind}": share for kind, share in shares.items()}
    return result
