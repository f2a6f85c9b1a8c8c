"""Anchors of SPM's latent anchoring (Lyu et al., CVPR 2024): the concepts whose predictions must stay.

    p(c | c_tar) ∝ (1 - |cos(c, c_tar)|)^α                                             (7) of the paper

over text embeddings, flattened to one vector. `GaussianAnchors` draws c among isotropic directions, as the
released code does, there by an acceptance of 1 - cos; `PromptAnchors` among the prompts of a list.

In the 59,136 dimensions of a 77x768 embedding the cosine of an isotropic direction has a standard deviation
of 0.004: the weights are then all but equal, and Gaussian anchors are noise of the target's norm, far from
any prompt's embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...training.prompting import Conditions, encode
from ...training.randomness import Draws

# What stands for a text, by the name of the tensor; drawn apart (StableDiffusionXL has both).
TEXTS = ("encoder_hidden_states", "text_embeds")


def anchor_weights(cosine: Tensor, alpha: float) -> Tensor:
    """(1 - |cos|)^α in [0, 1], of any shape."""
    return (1 - cosine.abs()).clamp(min=0).pow(alpha)  # (7)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos over the last dimension, in float32."""
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)


def without_targets(prompts: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts that may stay, and those that say all that a target says, articles aside: "a blue car" cannot
    stay where "a car" goes.
    """
    # A target of signs or articles alone has no words to compare.
    concepts = [words for words in map(_words, targets) if words]
    kept: list[str] = []
    dropped: list[str] = []
    for prompt in prompts:
        holds = any(concept <= _words(prompt) for concept in concepts)
        (dropped if holds else kept).append(prompt)
    return kept, dropped


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - {"a", "an", "the"}


class Anchors:
    """Draws anchors for a target.

    Args:
        alpha: α >= 0 of equation (7).

    Raises:
        ValueError: a negative α.
    """

    def __init__(self, alpha: float = 1.0):
        if not 0 <= alpha < math.inf:
            raise ValueError(f"The anchors' alpha is {alpha}; it must be at least 0.")
        self.alpha = alpha

    def prepare(self, pipe: Any, targets: Sequence[str]) -> None:
        """Encodes what has to be, once the pipeline is on its device."""

    def draw(self, target: Conditions, rows: int, each: int, draws: Draws) -> Conditions:
        """`each` anchors for each of `rows` latents, in the latents' order.

        Args:
            target: the target's conditions, one item.
            rows: latents of this process.
            each: anchors for each.
            draws: the step's random numbers.

        Returns:
            rows * each conditions.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What fixes the draws, as JSON."""
        return {"sampler": type(self).__name__, "alpha": self.alpha}


class GaussianAnchors(Anchors):
    """Random directions: c = s ‖c_tar‖ z / ‖z‖, z ~ N(0, I), s ~ U(0.8, 1.2), z accepted with (1 - |cos|)^α.

    Candidates are drawn together and the first accepted one is taken, so that no step waits for the device;
    their number makes a draw without an accepted one (the last candidate is taken then) rarer than 1e-6.
    Positions that an attention mask hides are zero.
    """

    def draw(self, target: Conditions, rows: int, each: int, draws: Draws) -> Conditions:
        anchors = target.repeat(rows * each)
        mask = target.arguments.get("encoder_attention_mask")
        for home in (anchors.arguments, anchors.added):
            for name in home.keys() & set(TEXTS):
                whole = (target.arguments | target.added)[name][0]
                visible = mask[0].bool() if mask is not None and name == TEXTS[0] else None
                home[name] = self._drawn(whole, visible, rows, each, draws).to(whole.dtype)
        return anchors

    def _drawn(self, target: Tensor, visible: Tensor | None, rows: int, each: int, draws: Draws) -> Tensor:
        shown = target.float() if visible is None else target.float() * visible[:, None]
        flat = shown.flatten()
        tries = candidates(flat.numel(), self.alpha)
        z = draws.normal((rows, each, tries, *target.shape))
        z = (z if visible is None else z * visible[:, None]).flatten(3)
        accepted = draws.uniform((rows, each, tries)) < anchor_weights(cosine(z, flat), self.alpha)
        accepted[..., -1] = True
        first = accepted.int().argmax(dim=-1)[..., None, None].expand(-1, -1, 1, z.shape[-1])
        z = z.gather(2, first).squeeze(2)
        scale = 0.8 + 0.4 * draws.uniform((rows, each, 1))
        anchor = scale * flat.norm() * z / z.norm(dim=-1, keepdim=True)
        return anchor.view(rows * each, *target.shape)


def candidates(dimension: int, alpha: float) -> int:
    """How many isotropic directions leave none accepted with a probability of less than 1e-6.

    E|cos| = Γ(d/2) / (√π Γ((d+1)/2)); by Jensen's inequality the acceptance is at least
    (1 - E|cos|)^max(α, 1).
    """
    if dimension < 2:
        raise ValueError("In one dimension every direction is the target's or its opposite.")
    mean = math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)) / math.sqrt(math.pi)
    acceptance = (1 - mean) ** max(alpha, 1.0)
    return 1 + math.ceil(math.log(1e-6) / math.log1p(-acceptance))


class PromptAnchors(Anchors):
    """Prompts that should stay as they are, drawn with replacement by the weights of equation (7).

    Args:
        prompts: the prompts.
        alpha: α.

    Raises:
        ValueError: no prompt, or a negative α.
    """

    def __init__(self, prompts: Sequence[str], alpha: float = 1.0):
        super().__init__(alpha)
        if not prompts:
            raise ValueError("Anchors from prompts need prompts: give --anchor_prompts that should stay.")
        self.prompts = list(prompts)

    def prepare(self, pipe: Any, targets: Sequence[str]) -> None:
        """Encodes the prompts.

        Raises:
            ValueError: a prompt that is a target.
        """
        if both := sorted(set(self.prompts) & set(targets)):
            raise ValueError(f"{both[0]!r} is both a target and an anchor; it cannot go and stay.")
        self.conditions = encode(pipe, self.prompts)

    def weights(self, target: Conditions) -> Tensor:
        """The probability of each prompt, (number of prompts,)."""
        ours = self.conditions.arguments["encoder_hidden_states"].flatten(1)
        theirs = target.arguments["encoder_hidden_states"].flatten(1)
        weights = anchor_weights(cosine(ours, theirs), self.alpha).double()
        return weights / weights.sum()

    def draw(self, target: Conditions, rows: int, each: int, draws: Draws) -> Conditions:
        # The inverse of the cumulated weights; rounding may leave their end below the largest draw.
        edges = self.weights(target).cumsum(0)[:-1]
        index = torch.searchsorted(edges, draws.uniform((rows, each)).double().flatten(), right=True)
        return self.conditions.rows(index)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "prompts": self.prompts}
