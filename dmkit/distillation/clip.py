"""The clamped CLIP loss of SwiftBrush v2 (Dao et al., ECCV 2024), which PG-SB keeps at a falling weight:

    L_CLIP = w max(0, τ - cos(E_image(D(x̂_0)), E_text(y)))                                         (1)

clamped for each image, then averaged: an image that shows its prompt well enough is left alone. (If the
cosines were averaged first, good images would pay for bad ones.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ..errors import FileFormatError


class Scorer(Protocol):
    """Judges images by texts. What a student is to be judged by later must not be one."""

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, E) of images (B, C, H, W) in [-1, 1], differentiable."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (N, E), on the CPU."""

    def to(self, device: torch.device) -> Any: ...


class CLIPScorer:
    """A frozen `CLIPModel`.

    Args:
        clip: both towers.
        tokenizer: texts -> tokens.
        mean, std: of the pixels (3,) in [0, 1], as the model wants them; pixels stay in [-1, 1] if None.
    """

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: CLIPTokenizer,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        self.clip, self.tokenizer = clip.eval().requires_grad_(False), tokenizer
        centre = torch.tensor([0.5] if mean is None else list(mean))
        spread = torch.tensor([0.5] if std is None else list(std))
        # ((x + 1)/2 - mean)/std of x in [-1, 1]
        self.shift, self.scale = ((v.view(1, -1, 1, 1)) for v in (2 * centre - 1, 2 * spread))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> CLIPScorer:
        """A CLIP and its tokenizer, from a folder or the hub, with the pixels of its
        `preprocessor_config.json` where a folder has one.

        Raises:
            FileFormatError: a folder that is not a CLIP.
        """
        try:
            clip = CLIPModel.from_pretrained(folder, use_safetensors=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            raise FileFormatError(f"{folder} is not a CLIP with its tokenizer: {error}") from error
        settings = _preprocessing(folder)
        return cls(clip, tokenizer, settings.get("image_mean"), settings.get("image_std"))

    def to(self, device: torch.device) -> CLIPScorer:
        self.clip.to(device)
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self

    def embed_images(self, images: Tensor) -> Tensor:
        size = self.clip.config.vision_config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
        out = self.clip.vision_model(pixel_values=(images - self.shift) / self.scale)
        return F.normalize(self.clip.visual_projection(out.pooler_output).float(), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 128) -> Tensor:
        parts = []
        for start in range(0, len(texts), batch_size):
            some = list(texts[start : start + batch_size])
            tokens = self.tokenizer(some, padding=True, truncation=True, return_tensors="pt").to(
                self.clip.device
            )
            out = self.clip.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            projected = self.clip.text_projection(out.pooler_output).float()
            parts.append(F.normalize(projected, dim=1).cpu())
        return torch.cat(parts)


def _preprocessing(folder: str | os.PathLike) -> dict[str, Any]:
    if not Path(folder).is_dir():  # a hub's id
        from transformers import CLIPImageProcessor

        processor = CLIPImageProcessor.from_pretrained(folder)
        return {"image_mean": processor.image_mean, "image_std": processor.image_std}
    path = Path(folder) / "preprocessor_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from error


@dataclass
class CLIPLoss:
    """(1) with a weight that falls linearly to 0 over the training.

    Args:
        scorer: the judge.
        vae: makes images of latents, an `AutoencoderKL` or `AutoencoderTiny`; it is frozen.
        steps: optimiser steps of the training; the weight is `weight` at the first and 0 at the last.
        weight: w at the start, at least 0.
        threshold: τ, in (0, 1].

    Raises:
        ValueError: values out of range.
    """

    scorer: Scorer
    vae: Any
    steps: int
    weight: float = 0.1
    threshold: float = 0.37

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"clip_weight is {self.weight}; it must be at least 0.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"clip_threshold is {self.threshold}; it must be in (0, 1].")
        self.vae.requires_grad_(False)

    def to(self, device: torch.device) -> CLIPLoss:
        self.scorer.to(device)
        self.vae.to(device)
        return self

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of latents as the denoiser has them, differentiable."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return self.vae.decode(latents / self.vae.config.scaling_factor + shift, return_dict=False)[0]

    def weight_at(self, step: int) -> float:
        return self.weight * max(0.0, 1 - step / max(1, self.steps - 1))

    def __call__(self, x0: Tensor, texts: Tensor, step: int) -> Tensor:
        """
        Args:
            x0: latents (B, c, h, w).
            texts: unit embeddings (B, E) of their prompts.
            step: of the training, from 0.
        """
        weight = self.weight_at(step)
        if weight == 0:
            return x0.new_zeros(())
        cosines = (self.scorer.embed_images(self.decode(x0)) * texts).sum(1)
        return weight * clamped(cosines, self.threshold)

    def settings(self) -> dict[str, Any]:
        return {"clip": [self.steps, self.weight, self.threshold]}


def clamped(cosines: Tensor, threshold: float) -> Tensor:
    """(1) for cosines (B,), without w."""
    return (threshold - cosines).clamp_min(0).mean()
