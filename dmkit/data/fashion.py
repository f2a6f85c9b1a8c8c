"""Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileFormatError
from .dataset import ImageDataset
from .pictures import pad_or_resize
from .roots import data_root, find

CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
FOLDER = "fashion-mnist"
LICENSE = "MIT"
CITATION = "H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST. arXiv:1708.07747, 2017."
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of unsigned bytes: two zero bytes, 0x08, the number of axes, each axis as a
    big-endian uint32, then the bytes.

    Raises:
        FileFormatError: truncated, not gzip, not IDX, or of another element type.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"{path} is missing, truncated or not a gzip file: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise FileFormatError(f"{path} is not an IDX file of unsigned bytes.")
    axes, start = content[3], 4 + 4 * content[3]
    if len(content) < start:
        raise FileFormatError(f"{path} is truncated within its header.")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise FileFormatError(f"{path} holds {len(content) - start} bytes where its header says {shape}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)


def load(split: str, resolution: int | None, root: Path | None) -> ImageDataset:
    """Fashion-MNIST: 60,000 (train) and 10,000 (test) grey 28x28 pictures of clothes in 10 even classes.

    Source: the Debian package `dataset-fashion-mnist`. Licence: MIT. Cite: Xiao, Rasul and Vollgraf,
    arXiv:1708.07747. At `resolution=32` the pictures get a black frame of 2 pixels.

    Raises:
        MissingDataError: the package is neither installed nor fetched.
        FileFormatError: a damaged file.
    """
    how = "python -m dmkit.data.fetch fashion-mnist (or, as root: apt-get install dataset-fashion-mnist)"
    folder = find("Fashion-MNIST", [data_root(root) / FOLDER, SYSTEM_FOLDER], how)
    images, labels = (
        read_idx(folder / f"{_PREFIX[split]}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    if images.ndim != 3 or labels.shape != images.shape[:1] or images.shape[1] != images.shape[2]:
        raise FileFormatError(
            f"{folder}: images {tuple(images.shape)} and labels {tuple(labels.shape)} do not belong together."
        )
    pixels = pad_or_resize(images.unsqueeze(1), resolution or images.shape[-1])
    return ImageDataset(
        pixels,
        name="fashion-mnist",
        split=split,
        channels=1,
        resolution=pixels.shape[-1],
        labels=labels.long(),
        label_names=CLASSES,
        license=LICENSE,
        citation=CITATION,
    )
