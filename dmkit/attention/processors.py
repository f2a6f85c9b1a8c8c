"""Attention processors that answer a prompt and a negative prompt in one call; the equations are in
`dmkit.attention.steering`.

For joint attention, where text and image tokens are read in one softmax, the papers give no formula for NASA.
Ours, experimental: prompt and negative prompt each see themselves and the image, never each other, and of the
image's answer o = Σ_text p v + Σ_image p v only the part from the text is subtracted,

    o = o⁺_text + o⁺_image - α o⁻_text                                                               (6)

Subtracting all of it would scale down how the image reads itself. o⁻_text is an attention whose image values
are 0, so any backend computes it. NAG, whose answers are compared as a whole, keeps o⁻ whole as in its paper.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from .steering import Steering


class _SteeredProcessor:
    # `set_attention_backend` writes to processors that have these.
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self, steering: Steering):
        self.steering = steering

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
    ) -> Tensor:
        """softmax(q kᵀ · scale + mask) v of (B, N, heads, d), as (B, N, heads · d)."""
        answer = dispatch_attention_fn(
            q,
            k,
            v,
            attn_mask=mask,
            scale=scale,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return answer.flatten(2, 3).to(q.dtype)


class NASAAttnProcessor2_0(_SteeredProcessor):  # noqa: N801
    """For cross-attention: UNets, PixArt. Stands in for Diffusers' `AttnProcessor2_0`.

    Args:
        steering: shared by the layers of a model.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            attn: the layer.
            hidden_states: (B, N, C).
            encoder_hidden_states: (B, L⁺ + L⁻, C'), the prompt's tokens and the negative prompt's.
            attention_mask: added to the scores, (B, 1, L⁺ + L⁻).

        Raises:
            ValueError: text that is not of this form.
        """
        self.steering.check_text(encoder_hidden_states)  # type: ignore[arg-type]
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        # Split before any layer of it runs: a group norm over the text takes its mean over all tokens.
        texts = encoder_hidden_states.split(self.steering.sizes, dim=1)  # type: ignore[union-attr]
        masks: Any = (None, None)
        if attention_mask is not None:
            masks = attention_mask.split(self.steering.sizes, dim=-1)
        answers = [
            self._read(attn, query, text, mask) for text, mask in zip(texts, masks, strict=True)
        ]  # (1)
        output = attn.to_out[1](attn.to_out[0](self.steering.away(*answers)))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor

    def _read(self, attn: Attention, query: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = text.shape
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, length, batch).view(batch, attn.heads, -1, length)
        if attn.norm_cross is not None:
            text = attn.norm_encoder_hidden_states(text)
        key, value = (project(text).unflatten(-1, (attn.heads, -1)) for project in (attn.to_k, attn.to_v))
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        # 1/√d is the default, to the bit; layers without it have a scale of their own.
        return self.attend(query, key, value, mask, None if attn.scale_qk else attn.scale)


def _projected(
    x: Tensor, projections: tuple[Any, Any, Any], norms: tuple[Any, Any], heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, N, heads, d) of tokens (B, N, C)."""
    q, k, v = (project(x).unflatten(-1, heads) for project in projections)
    return *(y if norm is None else norm(y) for y, norm in zip((q, k), norms, strict=True)), v  # type: ignore


class _JointProcessor(_SteeredProcessor):
    def image_and_text(self, attn: Any, image: Tensor, text: Tensor, heads: tuple[int, int]) -> list[Tensor]:
        """Queries, keys and values (B, L⁺ + L⁻ + N, heads, d) of [prompt, negative prompt, image]."""
        self.steering.check_text(text)
        of_image = _projected(image, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k), heads)
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        of_text = _projected(text, added, (attn.norm_added_q, attn.norm_added_k), heads)
        return [torch.cat(pair, dim=1) for pair in zip(of_text, of_image, strict=True)]

    def read_jointly(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Joint attention over [prompt, negative prompt, image].

        Returns:
            (B, L⁺ + L⁻ + N, heads · d), the image's tokens steered.
        """
        n_prompt, n_negative = self.steering.sizes
        n_image = query.shape[1] - n_prompt - n_negative
        (qp, qn, qi), (kp, kn, ki), (vp, vn, vi) = (
            x.split((n_prompt, n_negative, n_image), dim=1) for x in (query, key, value)
        )
        plain = self.attend(*(torch.cat(pair, dim=1) for pair in ((qp, qi), (kp, ki), (vp, vi))))
        prompt, image = plain.split((n_prompt, n_image), dim=1)
        keys, values = torch.cat([kn, ki], dim=1), torch.cat([vn, vi], dim=1)
        if self.steering.mode == "nag":
            both = self.attend(torch.cat([qn, qi], dim=1), keys, values)
            negative, away = both.split((n_negative, n_image), dim=1)
        else:
            negative = self.attend(qn, keys, values)
            away = self.attend(qi, keys, torch.cat([vn, torch.zeros_like(vi)], dim=1))  # o⁻_text of (6)
        return torch.cat([prompt, negative, self.steering.away(image, away)], dim=1)

    def outputs(self, attn: Any, answer: Tensor, n_image: int) -> tuple[Tensor, Tensor]:
        """The image's and the text's tokens after their output projections."""
        text, image = answer.split((answer.shape[1] - n_image, n_image), dim=1)
        # The last block of SD3 drops its text and has no projection for it.
        return attn.to_out[1](attn.to_out[0](image)), text if attn.context_pre_only else attn.to_add_out(text)


def _refuse_mask(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError("Steered joint attention takes no attention mask.")


class NASAJointAttnProcessor2_0(_JointProcessor):  # noqa: N801
    """For the joint attention of Stable Diffusion 3; experimental. Stands in for `JointAttnProcessor2_0`.

    Args:
        steering: shared by the layers of a model.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            attn: the layer.
            hidden_states: (B, N, C), the image.
            encoder_hidden_states: (B, L⁺ + L⁻, C), the prompt's tokens and the negative prompt's.
            attention_mask: must be None.

        Raises:
            ValueError: text that is not of this form, or a mask.
        """
        _refuse_mask(attention_mask)
        parts = self.image_and_text(attn, hidden_states, encoder_hidden_states, (attn.heads, -1))
        return self.outputs(attn, self.read_jointly(*parts), hidden_states.shape[1])


class NASAFluxAttnProcessor(_JointProcessor):
    """For both kinds of blocks of Flux; experimental. Stands in for `FluxAttnProcessor`.

    Args:
        steering: shared by the layers of a model.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            attn: the layer, a `FluxAttention`.
            hidden_states: (B, N, C), the image; in single-stream blocks (B, L⁺ + L⁻ + N, C), with the text.
            encoder_hidden_states: (B, L⁺ + L⁻, C), the prompt's tokens and the negative prompt's.
            attention_mask: must be None.
            image_rotary_emb: cosines and sines (L⁺ + L⁻ + N, d).

        Raises:
            ValueError: text that is not of this form, or a mask.
        """
        _refuse_mask(attention_mask)
        heads = (-1, attn.head_dim)
        if encoder_hidden_states is None:
            own = (attn.to_q, attn.to_k, attn.to_v)
            query, key, value = _projected(hidden_states, own, (attn.norm_q, attn.norm_k), heads)
        else:
            query, key, value = self.image_and_text(attn, hidden_states, encoder_hidden_states, heads)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        answer = self.read_jointly(query, key, value)
        if encoder_hidden_states is None:
            return answer
        return self.outputs(attn, answer, hidden_states.shape[1])
