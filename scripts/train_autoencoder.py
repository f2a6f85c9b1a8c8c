"""Trains the autoencoder of a latent diffusion model (an `AutoencoderKL`).

    accelerate launch scripts/train_autoencoder.py --config scripts/recipes/emoji-autoencoder.yaml

The finished folder holds the network with its scaling factor: one over the standard deviation of the latents
of the first data set, so that a denoiser sees numbers of unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import ConcatDataset

from dmkit import data
from dmkit.data import ImageDataset
from dmkit.training.arguments import TrainingArguments, hint, parse_arguments
from dmkit.training.autoencoding import AutoencodingTask, TrainableAutoencoder
from dmkit.training.trainer import Trainer


@dataclass
class ModelArguments:
    """What to train, and on what."""

    dataset_name: list[str] = field(
        default_factory=list, metadata=hint("Data sets of dmkit.data, folders, or sets of `datasets`.")
    )
    dataset_repeats: list[int] = field(
        default_factory=list, metadata=hint("How often each set comes in an epoch; once by default.")
    )
    pretrained_model_name_or_path: str | None = field(
        default=None, metadata=hint("An autoencoder to start from; the flags of a new one are then unused.")
    )
    resolution: int = field(default=32, metadata=hint("Side of the images in pixels."))
    block_out_channels: list[int] = field(
        default_factory=lambda: [24, 48, 64], metadata=hint("Width by level; each level halves the side.")
    )
    layers_per_block: int = field(default=1, metadata=hint("Residual layers by level."))
    latent_channels: int = field(default=4, metadata=hint("Channels of the latents."))
    norm_num_groups: int = field(default=8, metadata=hint("Groups of the group norms."))
    kl_weight: float = field(default=2e-4, metadata=hint("Weight of the KL divergence."))
    eval_batch_size: int = field(default=32, metadata=hint("Test images in a sample grid."))

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("Give at least one --dataset_name.")
        self.dataset_repeats = self.dataset_repeats or [1] * len(self.dataset_name)
        if len(self.dataset_repeats) != len(self.dataset_name):
            raise ValueError(
                f"{len(self.dataset_repeats)} --dataset_repeats for {len(self.dataset_name)} data sets."
            )


def images_only(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"images": torch.stack([item["images"] for item in items])}


def load_sets(names: list[str], resolution: int) -> list[ImageDataset]:
    """The training sets, all with the channels of the first."""
    first = data.load(names[0], split="train", resolution=resolution)
    others = [
        data.load(name, split="train", resolution=resolution, channels=first.channels) for name in names[1:]
    ]
    return [first, *others]


def example_images(trained: ImageDataset, count: int) -> Tensor:
    """Test images for the sample grid; where a set has no such split, images that are trained on."""
    try:
        shown = data.load(
            trained.name, split="test", resolution=trained.resolution, channels=trained.channels
        )
    except ValueError:
        shown = trained
    return images_only(shown.__getitems__(range(min(count, len(shown)))))["images"]


def new_autoencoder(model: ModelArguments, channels: int) -> TrainableAutoencoder:
    levels = len(model.block_out_channels)
    return TrainableAutoencoder(
        in_channels=channels,
        out_channels=channels,
        sample_size=model.resolution,
        block_out_channels=tuple(model.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
    )


def main(argv: list[str] | None = None) -> None:
    model, training = parse_arguments(ModelArguments, TrainingArguments, description=__doc__, argv=argv)
    set_seed(training.seed)
    sets = load_sets(model.dataset_name, model.resolution)
    repeated = [s for s, times in zip(sets, model.dataset_repeats, strict=True) for _ in range(times)]
    if model.pretrained_model_name_or_path is None:
        vae = new_autoencoder(model, sets[0].channels)
    else:
        vae = TrainableAutoencoder.from_pretrained(model.pretrained_model_name_or_path, use_safetensors=True)
    task = AutoencodingTask(
        vae,
        kl_weight=model.kl_weight,
        examples=example_images(sets[0], model.eval_batch_size),
        scaling_images=images_only(sets[0].__getitems__(range(min(2048, len(sets[0])))))["images"],
    )
    Trainer(task, ConcatDataset(repeated), training, collate_fn=images_only).train()


if __name__ == "__main__":
    main()
