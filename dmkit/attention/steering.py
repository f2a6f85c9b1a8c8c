"""How a layer's answer to a prompt is moved away from its answer to a negative prompt.

NASA: Nguyen et al., *Supercharged One-step Text-to-Image Diffusion Models with Negative Prompts*, ICCV 2025,
arXiv 2412.02687. NAG: Chen et al., *Normalized Attention Guidance*, NeurIPS 2025, arXiv 2505.21179. In a
cross-attention layer, with one query and the same projections for both prompts,

    Z⁺ = softmax(Q K⁺ᵀ/√d) V⁺,   Z⁻ = softmax(Q K⁻ᵀ/√d) V⁻                                        (1)
    NASA:  Z = Z⁺ - α Z⁻                                                                             (2)
    NAG:   Z̃ = Z⁺ + φ (Z⁺ - Z⁻)                                                                     (3)
           R = ‖Z̃‖₁ / ‖Z⁺‖₁,   Ẑ = min(R, τ)/R · Z̃       per token, over all heads                  (4)
           Z = b Ẑ + (1 - b) Z⁺                                                                      (5)

then the output projection, as always. (3) is (1 + φ) times (2) with α = φ/(1 + φ). Of a negative prompt equal
to the prompt, NASA leaves (1 - α) Z⁺ and NAG Z⁺.

The negative tokens come behind the prompt's on the token axis, so that whatever the denoiser does to its text
(projections, adapters, masks) it does to both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown_name

MODES = ("nasa", "nag")


def checked_scale(scale: float | Sequence[float] | Tensor) -> float | Tensor:
    """A float, or float32 (B,) on the device it came on.

    Raises:
        ValueError: not finite, or of more than one axis.
    """
    given = torch.as_tensor(scale, dtype=torch.float32)
    if given.ndim > 1 or not given.numel():
        raise ValueError(f"A scale is a number or one for each prompt, not of shape {tuple(given.shape)}.")
    if not given.isfinite().all():
        raise ValueError(f"The scale must be finite, not {given.tolist()}.")
    if (given < 0).any():
        warnings.warn("A negative scale adds the negative prompt to the image.", stacklevel=3)
    return float(scale) if given.ndim == 0 else given  # type: ignore[arg-type]


def join_tokens(positive: Tensor, negative: Tensor) -> Tensor:
    """A prompt's tokens and a negative prompt's behind them; or their masks.

    Args:
        positive: (B, L⁺, C) embeddings or (B, L⁺) mask.
        negative: (B, L⁻, C) or (B, L⁻); B may be 1, for all prompts alike.

    Returns:
        (B, L⁺ + L⁻, C) or (B, L⁺ + L⁻).

    Raises:
        ValueError: other shapes.
    """
    if positive.ndim != negative.ndim or positive.shape[2:] != negative.shape[2:]:
        raise ValueError(
            f"The negative prompt's embeddings {tuple(negative.shape)} do not fit the prompt's "
            f"{tuple(positive.shape)}: one text encoder makes both."
        )
    if negative.shape[0] not in (1, positive.shape[0]):
        raise ValueError(f"{positive.shape[0]} prompts and {negative.shape[0]} negative prompts do not pair.")
    return torch.cat([positive, negative.expand(len(positive), *negative.shape[1:]).to(positive)], dim=1)


@dataclass
class Steering:
    """What the steered layers of a model share, and the arithmetic between their two answers.

    Args:
        mode: `nasa` or `nag`.
        scale: α of (2) or φ of (3); a float, or a tensor (B,) for the rows of the batch. 0 is the plain model
            to the bit.
        num_prompt_tokens: L⁺, of the first tokens of the text.
        num_negative_tokens: L⁻, of those behind.
        tau: τ of (4), at least 1; NAG only.
        blend: b of (5), in (0, 1]; NAG only.
        batch_size: rows of text that the model must be called with; None for any.

    Raises:
        ValueError: values out of range.
    """

    mode: str = "nasa"
    scale: float | Tensor = 0.2
    num_prompt_tokens: int = 0
    num_negative_tokens: int = 0
    tau: float = 2.5
    blend: float = 0.375
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        self.scale = checked_scale(self.scale)
        # Below 1 the ratio of the plain answer itself, R = 1, would be cut.
        if not (math.isfinite(self.tau) and self.tau >= 1):
            raise ValueError(f"tau must be at least 1, not {self.tau}.")
        if not 0 < self.blend <= 1:
            raise ValueError(f"blend must be in (0, 1], not {self.blend}.")

    @property
    def sizes(self) -> tuple[int, int]:
        return self.num_prompt_tokens, self.num_negative_tokens

    def check_text(self, text: Tensor) -> None:
        """
        Raises:
            ValueError: text (B, L, C) that is not a prompt with its negative prompt, or not a tensor.
        """
        if not isinstance(text, Tensor):  # an IP-Adapter makes a tuple of it
            raise ValueError(f"NASA reads text embeddings, not a {type(text).__name__}; unload IP-Adapters.")
        if not self.num_negative_tokens:
            raise ValueError("There are no negative tokens to steer away from; make them with NASA.encode.")
        if text.shape[1] != sum(self.sizes):
            raise ValueError(
                f"{text.shape[1]} tokens of text reached the denoiser, not {self.num_prompt_tokens} of the "
                f"prompt and {self.num_negative_tokens} of the negative prompt; make them with NASA.encode."
            )
        if self.batch_size not in (None, text.shape[0]):
            raise ValueError(
                f"{text.shape[0]} rows of text reached the denoiser, not {self.batch_size}: run the pipeline "
                "without guidance, and give num_images_per_prompt to NASA.encode."
            )

    def away(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Z from Z⁺ and Z⁻, all (B, N, C) with the heads side by side in C.

        Computed in float32: differences of half-precision answers lose digits, and sums over C overflow.
        """
        scale = self.scale
        if isinstance(scale, Tensor):
            if len(scale) != len(positive):
                raise ValueError(f"{len(scale)} scales do not fit a batch of {len(positive)}.")
            scale = scale.to(positive.device)[:, None, None]
        z, z_negative = positive.float(), negative.float()
        if self.mode == "nasa":
            return (z - scale * z_negative).to(positive.dtype)  # (2)
        extrapolated = z + scale * (z - z_negative)  # (3)
        norm, limit = (x.abs().sum(-1, keepdim=True) for x in (extrapolated, z))
        # (4): min(R, τ)/R = min(1, τ/R), which is 1 for R = 0 and 0 where Z⁺ = 0.
        tiny = torch.finfo(norm.dtype).tiny
        bounded = extrapolated * (self.tau * limit / norm.clamp_min(tiny)).clamp_max(1)
        return (z + self.blend * (bounded - z)).to(positive.dtype)  # (5)
