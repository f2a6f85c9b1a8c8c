"""UCE (Gandikota, Orgad, Belinkov, Materzyńska, Bau: Unified Concept Editing, WACV 2024): erasing without
training.

For each projection of the text, `to_k` and `to_v` of every cross-attention, with weights W_0,

    W = argmin Σ_{c ∈ E} ‖W c - W_0 c*‖² + Σ_{c ∈ P} ‖W c - W_0 c‖² + λ ‖W - W_0‖²                (1)

E are the concept's hidden states c, each with the surrogate's c* it should be taken for, and P those of
prompts to preserve. Setting the derivative to zero,

    W = (Σ_E W_0 c* cᵀ + Σ_P W_0 c cᵀ + λ W_0) (Σ_E c cᵀ + Σ_P c cᵀ + λ I)⁻¹                      (2)
      = W_0 + W_0 (Σ_E (c* - c) cᵀ) (Σ_E c cᵀ + Σ_P c cᵀ + λ I)⁻¹

(2) is the paper's closed form with the ridge λ of its released code, which makes the inverse exist. Its
second line is what is computed, in float64: without an edit it is W_0 to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...training.prompting import denoiser_of, encode
from .esd import cross_attentions


def moved(edits: tuple[Tensor, Tensor], preserved: Tensor, regularisation: float) -> Tensor:
    """M of W = W_0 + W_0 M, equation (2); it is the same for every W_0.

    Args:
        edits: c and c*, (K, D) each.
        preserved: P, (N, D).
        regularisation: λ > 0.

    Returns:
        (D, D), float64.
    """
    concept, surrogate = (part.double() for part in edits)
    kept = preserved.double()
    shift = (surrogate - concept).T @ concept  # Σ_E (c* - c) cᵀ
    gram = concept.T @ concept + kept.T @ kept
    gram += regularisation * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, shift.T).T  # the Gram matrix is symmetric


def text_projections(network: nn.Module) -> dict[str, nn.Linear]:
    """`to_k` and `to_v` of the cross-attentions, by module name.

    Raises:
        ValueError: there is none.
    """
    return {
        f"{name}.{part}": getattr(attention, part)
        for name, attention in cross_attentions(network).items()
        for part in ("to_k", "to_v")
    }


@torch.no_grad()
def edit(
    pipe: Any,
    concepts: Sequence[str],
    surrogate: str = "",
    *,
    preserve: Sequence[str] = (),
    regularisation: float = 0.5,
) -> list[str]:
    """Edits a pipeline's denoiser in place, in closed form.

    Which hidden states: of a concept those from its last token on (the token, the end of the text and the
    padding, which in a causal text encoder all know the whole concept), paired with the surrogate's from its
    last token on, as in the released code; "" has its start token there. Of a preserved prompt all of them.

    Args:
        pipe: a pipeline like StableDiffusion or StableDiffusionXL.
        concepts: what is erased.
        surrogate: what each concept is taken for.
        preserve: prompts whose keys and values should stay.
        regularisation: λ > 0, how much all others should stay; 0.5 in the released code.

    Returns:
        The names of the edited layers.

    Raises:
        ValueError: an empty concept, λ that is not positive, a concept that is preserved too, or a denoiser
            whose projections do not read the text embeddings as they are.
    """
    concepts, preserve = list(concepts), list(preserve)
    if not all(concept.strip() for concept in concepts):
        raise ValueError("A concept to erase is empty.")
    if not 0 < regularisation < float("inf"):
        raise ValueError(f"regularisation (λ) is {regularisation}; it must be positive.")
    if both := sorted(set(concepts) & set(preserve)):
        raise ValueError(f"{both[0]!r} is both erased and preserved.")
    layers = text_projections(denoiser_of(pipe))
    if not concepts:
        return []
    states = encode(pipe, [*concepts, surrogate, *preserve]).arguments["encoder_hidden_states"]
    width = states.shape[-1]
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear) or layer.in_features != width:
            raise ValueError(
                f"UCE edits projections of the text embeddings ({width} numbers each); {name} of this "
                f"{type(denoiser_of(pipe)).__name__} reads something else."
            )
    count = len(concepts)
    there = states[count, _last_token(pipe, surrogate) :]
    pairs = []
    for concept, hidden in zip(concepts, states[:count], strict=True):
        here = hidden[_last_token(pipe, concept) :]
        common = min(len(here), len(there))
        pairs.append((here[:common], there[:common]))
    sources, aims = (torch.cat(part) for part in zip(*pairs, strict=True))
    change = moved((sources, aims), states[count + 1 :].flatten(0, 1), regularisation)
    for layer in layers.values():
        weight = layer.weight.double()
        layer.weight.copy_(weight + weight @ change)
    return list(layers)


def _last_token(pipe: Any, prompt: str) -> int:
    """Position of the prompt's last token, before the end token; of the start token if there is none."""
    tokens = pipe.tokenizer(prompt, truncation=True).input_ids
    return len(tokens) - 2
