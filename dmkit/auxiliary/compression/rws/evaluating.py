"""What a network is worth on clean and on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import torch
from torch import Generator, Tensor, nn

from ....data.corruptions import Corruption
from ....metrics.classification import accuracy

Rule = Callable[[Tensor, Generator], Tensor]


def evaluate_corruptions(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    corruptions: Sequence[Corruption] | Mapping[str, Rule],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """TA, the accuracy on clean images, and RA, that under each corruption.

    Args:
        model: images -> logits; what normalises images is its own part, so that it cannot differ from one
            evaluation to the next.
        images: (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        corruptions: corruptions, or rules (images, generator) -> images by name.
        seed: of the corruptions' random numbers, the same for each.

    Returns:
        "clean", each corruption by name, and "mean" over the corruptions; shares of 1.

    Raises:
        ValueError: no corruption.
    """
    rules = corruptions if isinstance(corruptions, Mapping) else {c.name: c for c in corruptions}
    if not rules:
        raise ValueError("There is no corruption to evaluate.")
    robust = {}
    for name, rule in rules.items():
        generator = torch.Generator(images.device).manual_seed(seed)
        robust[name] = accuracy(model, rule(images, generator), labels)
    return {"clean": accuracy(model, images, labels), **robust, "mean": mean(robust.values())}
