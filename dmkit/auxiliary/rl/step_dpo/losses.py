"""(3) to (5), on the summed log-probabilities of what follows a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each label (B, L), 0 where it is -100, from logits (B, L, V) of the positions;
    those at position t are of label t + 1.
    """
    targets = labels[:, 1:]
    known = targets != IGNORED
    logps = F.log_softmax(logits[:, :-1].float(), dim=2)
    picked = logps.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return F.pad(torch.where(known, picked, 0.0), (1, 0))


def sequence_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,): sums over tokens, not means, which would be another objective."""
    return token_logps(logits, labels).sum(1)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    probability: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(4), or (5) with a `probability` below 1.

    Args:
        chosen: (B,), log π of the chosen continuations; the other three likewise.
        rejected: of the rejected ones.
        reference_chosen: under π_sft.
        reference_rejected: under π_sft.
        beta: β.
        probability: P that the chosen one is the better, in [0, 1], one for all or (B,). Only with P below 1
            has the loss a finite optimum, h = log P/(1-P).

    Returns:
        The losses (B,) and the margins h (B,).

    Raises:
        ValueError: β that is not positive, or log-probabilities of different shapes.
    """
    if not beta > 0:
        raise ValueError(f"beta is positive, not {beta}.")
    shapes = [tuple(logps.shape) for logps in (chosen, rejected, reference_chosen, reference_rejected)]
    if len(set(shapes)) > 1:
        raise ValueError(f"Log-probabilities are four of one shape, not {shapes}.")
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    losses = -probability * F.logsigmoid(margin) - (1 - probability) * F.logsigmoid(-margin)
    return losses, margin


def advantage_weighted_loss(
    logits: Tensor,
    labels: Tensor,
    step_ids: Tensor,
    advantages: Tensor,
    *,
    beta: float = 1.0,
    max_weight: float = 20.0,
) -> Tensor:
    """-(3), a mean over B solutions.

    Args:
        logits: (B, L, V).
        labels: (B, L), -100 where nothing is learnt.
        step_ids: (B, L) int64, the step of each token from 0; any number where labels are -100.
        advantages: (B, steps).
        beta: β.
        max_weight: exp(A/β) is cut there.

    Raises:
        ValueError: β that is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta is positive, not {beta}.")
    weights = torch.exp(advantages.float() / beta).clamp(max=max_weight)
    each = weights.gather(1, step_ids.clamp(0, advantages.shape[1] - 1))
    return -(each * token_logps(logits, labels)).sum(1).mean()
