"""Untrained networks that benchmarks time."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel


def grey_unet(side: int) -> UNet2DModel:
    """A UNet of 2.7 M parameters for grey images of this side, with weights of seed 0."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
