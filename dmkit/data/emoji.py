"""Emoji with captions, in the drawing styles of two vendors."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import torch

from ..errors import FileFormatError
from .dataset import ImageDataset
from .pictures import fit, open_picture, to_tensor
from .roots import data_root, find

VERSION = "16.0.0"
SIDE = 64
_ART = {
    "google": ("Apache-2.0", "Noto Emoji, Google LLC"),
    "twitter": ("CC BY 4.0", "Twemoji, Twitter, Inc. and other contributors"),
}


def archive(vendor: str) -> str:
    """File name of a vendor's npm package."""
    return f"emoji-datasource-{vendor}-{VERSION}.tgz"


def _load(vendor: str, split: str, resolution: int | None, root: Path | None) -> ImageDataset:
    license, art = _ART[vendor]
    name = f"emoji-{vendor}"
    path = find(name, [data_root(root) / archive(vendor)], f"python -m dmkit.data.fetch {name}")
    side = SIDE if resolution is None else resolution
    try:
        with tarfile.open(path, "r:gz") as package:
            # Members are read by name from the archive; nothing is written to the disk.
            files = {member.name: member for member in package.getmembers() if member.isfile()}

            def content(name: str) -> bytes:
                return package.extractfile(files[name]).read()  # type: ignore[union-attr]

            entries = json.loads(content("package/emoji.json"))
            categories = sorted({entry["category"] for entry in entries})
            # Both vendors list the same emoji in the same order: held out are the same ones.
            chosen = [e for k, e in enumerate(entries) if (k % 10 == 9) == (split == "test")]
            pictures = (
                open_picture(io.BytesIO(content(f"package/img/{vendor}/{SIDE}/{entry['image']}")))
                for entry in chosen
            )
            pixels = torch.stack([to_tensor(fit(picture, side, 3)) for picture in pictures])
            labels = torch.tensor([categories.index(entry["category"]) for entry in chosen])
            captions = [entry["name"].lower() for entry in chosen]
    except (tarfile.TarError, OSError, EOFError, zlib.error, LookupError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged or not the expected package: {error!r}") from error
    return ImageDataset(
        pixels,
        name=name,
        split=split,
        channels=3,
        resolution=side,
        labels=labels,
        label_names=categories,
        captions=captions,
        license=f"MIT (package); {license} (art)",
        citation=f"{art}; emoji-datasource {VERSION}, C. Henderson.",
    )


def load_google(split: str, resolution: int | None, root: Path | None) -> ImageDataset:
    """1,911 emoji in Google's Noto style, 64x64 RGB on white: 1,720 to train, 191 (every tenth) to test.

    Captions are the Unicode names in lower case, labels the 10 categories. Skin-tone variants are left out.
    Source: the npm package `emoji-datasource-google`. Licence: code MIT, art Apache-2.0. Credit: Noto Emoji,
    Google LLC.

    Raises:
        MissingDataError: not fetched.
        FileFormatError: a damaged package.
    """
    return _load("google", split, resolution, root)


def load_twitter(split: str, resolution: int | None, root: Path | None) -> ImageDataset:
    """The emoji of `load_google`, one for one and in the same order, in the style of Twemoji.

    Source: the npm package `emoji-datasource-twitter`. Licence: code MIT, art CC BY 4.0. Credit: Twemoji,
    Twitter, Inc. and other contributors.

    Raises:
        MissingDataError: not fetched.
        FileFormatError: a damaged package.
    """
    return _load("twitter", split, resolution, root)
