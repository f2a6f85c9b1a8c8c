"""Asking a causal language model for solutions and for the rest of solutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Policy(Protocol):
    """Whatever finishes texts; `LanguageModel`, or a rule that is known."""

    tokenizer: Any

    def complete(self, prompts: Sequence[Sequence[int]], count: int, seed: int) -> list[list[str]]:
        """`count` continuations of each prompt, as text."""
        ...


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids (N, L) with padding in front, and which of them count."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class LanguageModel:
    """A causal language model of transformers with its tokenizer.

    Args:
        model: with `generate`.
        tokenizer: a fast one, which knows where in the text its tokens are, with an end of text.
        temperature: of samples; 0 takes the likeliest tokens.
        max_new_tokens: of a continuation.
        batch_size: continuations at a time.

    Raises:
        ValueError: a tokenizer without an end of text or without offsets, or numbers out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        batch_size: int = 512,
    ):
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no end of text, so that solutions never end.")
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer: steps cannot be found in it.")
        if not temperature >= 0 or max_new_tokens < 1 or batch_size < 1:
            raise ValueError(
                "Temperatures are not negative, tokens and batches at least 1; not "
                f"{temperature}, {max_new_tokens}, {batch_size}."
            )
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> LanguageModel:
        """By the name or folder of a model of transformers."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        return cls(AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name), **options)

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[int]], count: int, seed: int) -> list[list[str]]:
        """`count` continuations of each prompt (of token ids), without the end of text.

        The same seed gives the same; the global random numbers stay as they are. A continuation that does not
        end within `max_new_tokens` or the model's context is returned as it is.
        """
        model, tokenizer = self.model, self.tokenizer
        device, was = next(model.parameters()).device, model.training
        eos = tokenizer.eos_token_id
        pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Prompts of one length beside each other need the least padding.
        order = sorted((k for k in range(len(prompts)) for _ in range(count)), key=lambda k: len(prompts[k]))
        found: list[list[str]] = [[] for _ in prompts]
        model.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                for start in range(0, len(order), self.batch_size):
                    chosen = order[start : start + self.batch_size]
                    ids, mask = pad_left([prompts[k] for k in chosen], pad)
                    sample = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
                    out = model.generate(  # type: ignore[operator]
                        input_ids=ids.to(device),
                        attention_mask=mask.to(device),
                        max_new_tokens=self._room(ids.shape[1]),
                        eos_token_id=eos,
                        pad_token_id=pad,
                        **(sample if self.temperature else {"do_sample": False}),
                    )
                    for k, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
                        ended = row[: row.index(eos)] if eos in row else row
                        found[k].append(tokenizer.decode(ended, clean_up_tokenization_spaces=False))
        finally:
            model.train(was)
        return found

    def _room(self, length: int) -> int:
        context = context_of(self.model)
        return self.max_new_tokens if context is None else max(1, min(self.max_new_tokens, context - length))


def context_of(model: nn.Module) -> int | None:
    """How many tokens a model takes, if its config says so."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)
