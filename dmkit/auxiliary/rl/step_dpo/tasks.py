"""Trainings of a causal language model: on right solutions, on pairs, and on all steps by their advantages.

A row is padded on its right; prompts, padding and nothing else have the label -100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....data import Rows
from ....training.trainer import Step, Task
from .losses import IGNORED, advantage_weighted_loss, dpo_loss, sequence_logps
from .pairs import Pair
from .sampling import context_of
from .values import StepValues, step_advantages

Row = tuple[list[int], list[int]]


def pad_right(rows: Sequence[Row], length: int = 0) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels` (N, L) of rows (prompt, continuation).

    Args:
        rows: in token ids.
        length: L at least.
    """
    length = max(length, *(len(a) + len(b) for a, b in rows))

    def table(parts: Any, fill: int) -> Tensor:
        return torch.tensor([part + [fill] * (length - len(part)) for part in parts])

    return {
        "input_ids": table((a + b for a, b in rows), 0),
        # From lengths and not from ids: the padding token is often the end of text.
        "attention_mask": table(([1] * len(a + b) for a, b in rows), 0),
        "labels": table(([IGNORED] * len(a) + b for a, b in rows), IGNORED),
    }


def fitting(rows: Sequence[Any], lengths: Sequence[int], model: nn.Module) -> tuple[list[Any], int]:
    """Rows that a model's context holds, and how many it does not; nothing is cut off."""
    context = context_of(model)
    kept = [row for row, n in zip(rows, lengths, strict=True) if context is None or n <= context]
    return kept, len(rows) - len(kept)


def logits_of(model: nn.Module, rows: Mapping[str, Tensor]) -> Tensor:
    return model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits


class SupervisedTask(Task):
    """Maximum likelihood of solutions: SFT, and with sampled right ones RFT.

    A batch is that of `supervised_rows`. The loss is the mean over solutions of the mean over their tokens.
    """

    def __init__(self, model: nn.Module):
        self.modules = {"model": model}

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        logps = sequence_logps(logits_of(self.modules["model"], batch), batch["labels"])
        return {"loss": -(logps / (batch["labels"] != IGNORED).sum(1)).mean()}


def supervised_rows(rows: Sequence[Row]) -> Rows:
    """Prompts and solutions, the latter with their end of text.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("There is no solution to learn.")
    return Rows(**pad_right(rows))


class PreferenceTask(Task):
    """DPO on pairs, whole or by steps: (4) or (5).

    The model is in eval mode throughout: with dropout h would not be 0 at the start, where π = π_ref.

    Args:
        model: π, at first π_sft.
        beta: β.
        label_smoothing: share of pairs that are taken to be the wrong way round, in [0, 0.5).
        soft_labels: P = σ(Q⁺ - Q⁻) of each pair; the batch then needs `probability`.

    Raises:
        ValueError: numbers out of range, or smoothing and soft labels together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        soft_labels: bool = False,
    ):
        if not beta > 0 or not 0 <= label_smoothing < 0.5:
            raise ValueError(
                f"beta is positive and label_smoothing in [0, 0.5), not {beta} and {label_smoothing}."
            )
        if soft_labels and label_smoothing:
            raise ValueError("soft_labels have their own probabilities; label_smoothing must be 0.")
        self.modules = {"model": model}
        self.beta, self.label_smoothing, self.soft_labels = beta, label_smoothing, soft_labels

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("beta", "label_smoothing", "soft_labels")}

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        loss, _ = self.losses(self.modules["model"].eval(), batch)
        return {"loss": loss.mean()}

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(4) or (5) of each pair, and h."""
        both = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "labels")}
        chosen, rejected = (
            sequence_logps(logits_of(model, both), both["labels"]).unflatten(0, (-1, 2)).unbind(1)
        )
        known = batch["probability"] if self.soft_labels else 1 - self.label_smoothing
        reference = batch["reference"].unbind(1)
        return dpo_loss(chosen, rejected, *reference, beta=self.beta, probability=known)

    @torch.no_grad()
    def figures(self, rows: Rows, batch_size: int = 256) -> dict[str, float]:
        """How the model stands to the pairs, by TRL's names: `loss`, `rewards/accuracies`,
        `rewards/margins`, and by how much the log-probabilities of either side have changed.
        """
        model = self.modules["model"].eval()
        losses, margins, changes = [], [], []
        for start in range(0, len(rows), batch_size):
            batch = {name: column[start : start + batch_size] for name, column in rows.columns.items()}
            loss, margin = self.losses(model, batch)
            losses.append(loss)
            margins.append(margin)
            changes.append(pair_logps(model, batch) - batch["reference"])
        margin, change = torch.cat(margins), torch.cat(changes).mean(0)
        return {
            "loss": float(torch.cat(losses).mean()),
            "rewards/accuracies": float((margin > 0).double().mean()),
            "rewards/margins": float(margin.mean()),
            "logps/chosen_change": float(change[0]),
            "logps/rejected_change": float(change[1]),
        }


def pair_logps(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """(N, 2): log π of the chosen and the rejected continuations."""
    both = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "labels")}
    return sequence_logps(logits_of(model, both), both["labels"]).unflatten(0, (-1, 2))


def preference_rows(
    pairs: Sequence[Pair], reference: nn.Module, *, soft_labels: bool = False, batch_size: int = 256
) -> tuple[Rows, int]:
    """Pairs as a data set with log π_ref of both sides, which is computed once.

    Args:
        pairs: what is learnt from.
        reference: π_ref, usually π_sft; stays as it is.
        soft_labels: whether P = σ(Q⁺ - Q⁻) is needed.
        batch_size: of the reference's forward passes.

    Returns:
        `input_ids`, `attention_mask`, `labels` (N, 2, L), `reference` (N, 2), `probability` (N,); and how
        many pairs are longer than the model's context, and left out whole.

    Raises:
        ValueError: no pair that fits, or soft labels of pairs without Q.
    """
    lengths = [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]
    kept, dropped = fitting(pairs, lengths, reference)
    if not kept:
        raise ValueError(f"There is no pair to learn from ({dropped} are longer than the model's context).")
    values = [(p.q_chosen, p.q_rejected) for p in kept]
    if soft_labels and any(q is None for pair in values for q in pair):
        raise ValueError("soft_labels need q_chosen and q_rejected of every pair.")
    both = pad_right([(p.prompt, part) for p in kept for part in (p.chosen, p.rejected)])
    columns = {name: column.unflatten(0, (-1, 2)) for name, column in both.items()}
    was = reference.training
    reference.eval()
    device = next(reference.parameters()).device
    with torch.no_grad():
        parts = [
            pair_logps(
                reference, {name: c[k : k + batch_size].to(device) for name, c in columns.items()}
            ).cpu()
            for k in range(0, len(kept), batch_size)
        ]
    reference.train(was)
    gaps = torch.tensor([(a or 0.0) - (b or 0.0) for a, b in values])
    probability = torch.sigmoid(gaps) if soft_labels else torch.ones(len(kept))
    return Rows(**columns, reference=torch.cat(parts), probability=probability), dropped


class AdvantageTask(Task):
    """(3): all steps of right and wrong solutions, each weighted by exp(A/β).

    Args:
        model: π.
        beta: β.
        max_weight: where weights are cut.
    """

    def __init__(self, model: nn.Module, *, beta: float = 1.0, max_weight: float = 20.0):
        self.modules = {"model": model}
        self.beta, self.max_weight = beta, max_weight

    def settings(self) -> dict[str, Any]:
        return {"beta": self.beta, "max_weight": self.max_weight}

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        loss = advantage_weighted_loss(
            logits_of(self.modules["model"], batch),
            batch["labels"],
            batch["step_ids"],
            batch["advantages"],
            beta=self.beta,
            max_weight=self.max_weight,
        )
        return {"loss": loss}


def advantage_rows(values: Sequence[StepValues], starts: Mapping[str, float], eos: int) -> Rows:
    """Solutions with the advantages of their steps; steps of unknown value are not learnt.

    Args:
        values: of right and wrong solutions.
        starts: V(x) by question.
        eos: the end of text, which belongs to the last step.

    Raises:
        ValueError: no solution.
    """
    if not values:
        raise ValueError("There is no solution to learn.")
    rows, steps, advantages = [], [], []
    most = max(len(value.q) for value in values)
    for value in values:
        known, tokens = len(value.q), value.tokens
        whole = known == len(tokens.ends)
        rows.append((tokens.prompt, tokens.prefix(known) + ([eos] if whole else [])))
        sizes = [b - a for a, b in zip([0, *tokens.ends], tokens.ends, strict=False)][:known]
        sizes[-1] += whole
        steps.append([0] * len(tokens.prompt) + [k for k, size in enumerate(sizes) for _ in range(size)])
        found = step_advantages(value.q, starts[value.problem.question])
        advantages.append(found + [0.0] * (most - known))
    padded = pad_right(rows)
    length = padded["input_ids"].shape[1]
    step_ids = torch.tensor([ids + [0] * (length - len(ids)) for ids in steps])
    return Rows(**padded, step_ids=step_ids, advantages=torch.tensor(advantages))
