"""Small crops of two real photographs that the scikit-learn package carries: no download.

`china.jpg` (a temple; class 0) and `flower.jpg` (a dahlia; class 1), 427x640 pixels, CC BY 2.0; their
authors are named in the README beside them in scikit-learn's package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingExtraError

PHOTOS = ("china", "flower")


def load_photos(pool: int = 4) -> list[Tensor]:
    """The photographs (3, H, W), float32 in [-1, 1], each pixel the average of pool x pool of theirs.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: a pool below 1.
    """
    if pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}.")
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "metrics") from error
    photos = (torch.tensor(photo).permute(2, 0, 1)[None] for photo in load_sample_images().images)
    return [F.avg_pool2d(photo.float() / 127.5 - 1, pool)[0] for photo in photos]


def random_crops(
    count: int, generator: torch.Generator, size: int = 16, pool: int = 4
) -> tuple[Tensor, Tensor]:
    """Crops at random places of a randomly chosen photograph, drawn with replacement.

    Args:
        count: how many.
        generator: for photograph and place.
        size: side of a crop in pooled pixels.
        pool: see `load_photos`.

    Returns:
        Crops (count, 3, size, size) float32 in [-1, 1], and (count,) int64, the photograph each is from.

    Raises:
        ValueError: crops larger than the pooled photographs.
    """
    photos = torch.stack(load_photos(pool))
    height, width = photos.shape[-2] - size + 1, photos.shape[-1] - size + 1
    if height < 1 or width < 1:
        raise ValueError(
            f"size={size} is larger than the photographs pooled by {pool}, {tuple(photos.shape[-2:])}."
        )
    source = torch.randint(len(photos), (count,), generator=generator)
    top = torch.randint(height, (count,), generator=generator)[:, None, None] + torch.arange(size)[:, None]
    left = torch.randint(width, (count,), generator=generator)[:, None, None] + torch.arange(size)
    return photos[source[:, None, None], :, top, left].permute(0, 3, 1, 2).contiguous(), source
