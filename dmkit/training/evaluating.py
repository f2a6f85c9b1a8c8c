"""The training of a `dmkit.metrics.PromptEvaluator`: CLIP's loss for the two embeddings (Radford et al.,
arXiv:2103.00020) and a logistic loss for the concepts, on cached features of the frozen networks.

    loss = ½ [CE(τ I Tᵀ, k = k) + CE(τ T Iᵀ, k = k)] + Σ_c BCE(z_c − (1 − r) log ρ_c; weight ρ_c^r)

with the logit z_c of concept c and ρ_c images without it for each one with it. The shift and the weight make
a logit of 0 the balanced decision, which weighs presence and absence alike, whatever r is (Menon et al.,
arXiv:2007.07314); without them a rare concept would hardly ever be named.

The judge learns from scenes of its own (`judged_scene`), and not from those that text-to-image models are
trained on: it must know every composition, those that they never see too, or it would call a good picture of
a new composition wrong.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..data import DecodedPixels, ImageDataset, scenes
from ..data.emoji import Art
from ..data.scenes import STYLES, Scene, Studio
from ..metrics.evaluator import PromptEvaluator, image_colours, image_features, text_features
from ..metrics.prompts import concept_targets
from .contrastive import contrast
from .trainer import Step, Task

MAX_SCALE = 100.0


def judged_scene(index: int) -> tuple[Scene, str]:
    """Scene and caption number `index` that an evaluator learns from: any composition, held out or not.

    In turn large, small, and twice two things, which are the hardest to tell and rare among the scenes of
    `dmkit.data.load("emoji")`.
    """
    dice = random.Random(f"dmkit judged scenes 1 {index}")
    while True:
        scene = scenes.draw(dice)
        layout = (2, 3) if len(scene.things) == 2 else (1,) if scene.place else (0,)
        if index % 4 in layout:
            return scene, scenes.caption(scene, dice)


def judged_scenes(
    count: int, resolution: int = scenes.RESOLUTION, root: Path | None = None
) -> tuple[ImageDataset, list[set[str]]]:
    """The first `count` of these scenes as a data set, and the names of the concepts in each.

    Args:
        count: how many.
        resolution: side of the pictures in pixels.
        root: folder of fetched data, as for `dmkit.data.load`.

    Raises:
        MissingDataError: the emoji are not fetched.
    """
    drawn = [judged_scene(k) for k in range(count)]
    studio = Studio({vendor: Art.load(vendor, root) for vendor in STYLES.values()}, resolution)
    dataset = ImageDataset(
        DecodedPixels(lambda k: studio.draw(drawn[k][0]), count),
        name="emoji",
        split="judged",
        channels=3,
        resolution=resolution,
        captions=[caption for _, caption in drawn],
    )
    return dataset, [scene.concepts() for scene, _ in drawn]


def encode_scenes(
    dataset: ImageDataset,
    present: Sequence[Collection[str]],
    concept_names: Sequence[str],
    *,
    image_size: int = 96,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """What the frozen networks make of captioned images, and which concepts these hold.

    Args:
        dataset: with captions.
        present: names of the concepts in each image.
        concept_names: all concepts, in the order of the columns.
        image_size: as for `PromptEvaluator`.
        batch_size: images at a time.

    Returns:
        `images` (N, 1280, h, w), `colours` (N, 3, 8, 8) and `texts` (N, 384) in float16, `concepts` (N, n) in
        uint8.

    Raises:
        ValueError: a data set without captions, or an unknown concept.
        MissingExtraError: the extra "metrics" is not installed.
    """
    if dataset.captions is None:
        raise ValueError(f"{dataset.name} has no captions.")
    total = -(-len(dataset) // batch_size)
    batches = tqdm(dataset.batches_uint8(batch_size), total=total, mininterval=5.0, disable=total < 10)
    images, colours = [], []
    for batch in batches:
        pixels = batch.float().div(127.5).sub(1)
        images.append(image_features(pixels, image_size).half())
        colours.append(image_colours(pixels).half())
    return {
        "images": torch.cat(images),
        "colours": torch.cat(colours),
        "texts": text_features(list(dataset.captions)).half(),
        "concepts": concept_targets(concept_names, present),
    }


class EvaluatorTask(Task):
    """Trains the heads of an evaluator on rows of `encode_scenes`.

    Args:
        evaluator: what is trained.
        rarity: how much more an image that has a concept counts than one that has not: (images without /
            images with) ** rarity.
        concepts: the rows' targets (N, n), from which that ratio is taken.
    """

    def __init__(self, evaluator: PromptEvaluator, concepts: Tensor, *, rarity: float = 0.5):
        self.modules = {"evaluator": evaluator}
        share = concepts.float().mean(0).clamp(1 / len(concepts), 1 - 1 / len(concepts))
        ratio = (1 - share) / share
        self.weight, self.shift = ratio**rarity, (1 - rarity) * ratio.log()

    def prepare(self, device: torch.device) -> None:
        self.weight, self.shift = self.weight.to(device), self.shift.to(device)

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        module = self.modules["evaluator"]
        out = module(batch["images"], batch["colours"], batch["texts"])
        scale = getattr(module, "module", module).log_scale.exp().clamp(max=MAX_SCALE)
        logits = scale * out.image_embeddings @ out.text_embeddings.T
        concepts = F.binary_cross_entropy_with_logits(
            out.concept_logits - self.shift, batch["concepts"], pos_weight=self.weight, reduction="none"
        )
        return {
            "contrast": contrast(logits),
            "concepts": concepts.sum(1).mean(),
        }

    def save(self, folder: Path, modules: Mapping[str, Any]) -> None:
        modules["evaluator"].save_pretrained(folder)
