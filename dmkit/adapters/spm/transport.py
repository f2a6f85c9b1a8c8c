"""Facilitated transport: how far a prompt opens an SPM.

Lyu et al., CVPR 2024, arXiv 2312.16145. For a prompt p and a concept c, with H the hidden states that a text
encoder hands the denoiser and T the set of a text's tokens without special ones:

    s_f(p, c) = cos(H(p), H(c)), H flattened                 score `clipcos` of the released code
    s_t(p, c) = |T(p) ∩ T(c)| / |T(c)|                       score `tokenuni`                          (10)
    γ(p, c)   = max(s_f, s_t)                                score `clipcos_tokenuni`

and over several concepts of one SPM the largest. γ is in [0, 1]: a negative cosine, which would turn erasing
into adding, closes the adapter like 0, and rounding above 1 is cut.

T is a set of byte-pair tokens: "cat" does not match "cats", and a concept of two tokens is matched by half by
one of them. A tokenizer that pads with "!" (Stable Diffusion 2) loses that sign with its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import unknown_name

SCORES = ("clipcos", "tokenuni", "clipcos_tokenuni")


@dataclass(frozen=True)
class Texts:
    """Texts as the scores see them.

    Attributes:
        texts: the N texts.
        embeddings: (N, …), what the text encoder hands the denoiser.
        tokens: T of each text.
    """

    texts: tuple[str, ...]
    embeddings: Tensor
    tokens: tuple[frozenset[int], ...]


def content_tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[frozenset[int], ...]:
    """T: the token ids that a model sees of each text, without special ones (bos, eos, pad, unk)."""
    special = set(tokenizer.all_special_ids)
    return tuple(frozenset(ids) - special for ids in tokenizer(list(texts), truncation=True).input_ids)


def embedding_similarity(prompts: Tensor, concepts: Tensor) -> Tensor:
    """s_f of each pair, (B, K) float32, for (B, …) and (K, …) of equal shape otherwise.

    Raises:
        ValueError: other shapes.
    """
    if prompts.shape[1:] != concepts.shape[1:]:
        raise ValueError(
            f"Embeddings of prompts are {tuple(prompts.shape[1:])} and of concepts "
            f"{tuple(concepts.shape[1:])}; they should come from the same text encoder."
        )
    p, c = (F.normalize(x.flatten(1).float(), dim=1) for x in (prompts, concepts.to(prompts.device)))
    return p @ c.T


def token_overlap(prompts: Sequence[frozenset[int]], concepts: Sequence[frozenset[int]]) -> Tensor:
    """s_t of each pair, (B, K) float32, equation (10); on the CPU.

    Raises:
        ValueError: a concept without tokens, of which no share can be taken.
    """
    if not all(concepts):
        raise ValueError(
            "A target has no tokens but special ones, so that no share of them can match. Use score='clipcos'"
            " or another wording."
        )
    return torch.tensor([[len(c & p) / len(c) for c in concepts] for p in prompts])


def permeability(prompts: Texts, concepts: Texts, score: str = "clipcos_tokenuni") -> Tensor:
    """γ of each prompt, (B,) float32 in [0, 1], for an SPM with these concepts; on the embeddings' device.

    Args:
        prompts: B texts.
        concepts: K texts.
        score: `clipcos`, `tokenuni` or the larger of both.

    Raises:
        ValueError: an unknown score, or as `token_overlap` or `embedding_similarity`.
    """
    if score not in SCORES:
        raise unknown_name("score", score, SCORES)
    parts = []
    if "clipcos" in score:
        parts.append(embedding_similarity(prompts.embeddings, concepts.embeddings))
    if "tokenuni" in score:
        parts.append(token_overlap(prompts.tokens, concepts.tokens).to(prompts.embeddings.device))
    return torch.cat(parts, dim=1).amax(dim=1).clamp(0, 1)
