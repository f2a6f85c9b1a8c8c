"""Emoji art with its names, in the drawing styles of two vendors."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import FileFormatError, unknown_name
from .dataset import ImageDataset
from .pictures import fit, to_tensor, upright
from .roots import data_root, find

VERSION = "16.0.0"
SIDE = 64
LICENSES = {"google": "Apache-2.0", "twitter": "CC BY 4.0"}
CREDITS = {"google": "Noto Emoji, Google LLC", "twitter": "Twemoji, Twitter, Inc. and other contributors"}


def archive(vendor: str) -> str:
    """File name of a vendor's npm package."""
    return f"emoji-datasource-{vendor}-{VERSION}.tgz"


class Art:
    """One vendor's drawings.

    Attributes:
        entries: what the package says of each emoji, in its order (`name`, `category`, `image`, …).
        vendor: "google" or "twitter".
    """

    def __init__(self, vendor: str, entries: list[Mapping[str, Any]], files: Mapping[str, bytes]):
        self.vendor, self.entries, self._files = vendor, entries, files
        self._by_short_name = {name: entry for entry in entries for name in entry["short_names"]}

    @classmethod
    def load(cls, vendor: str, root: Path | None = None) -> Art:
        """Reads a vendor's package into memory (about 10 MB); nothing is written to the disk.

        Raises:
            MissingDataError: not fetched.
            FileFormatError: a damaged package.
        """
        name = f"emoji-{vendor}"
        path = find(name, [data_root(root) / archive(vendor)], f"python -m dmkit.data.fetch {name}")
        folder = f"package/img/{vendor}/{SIDE}/"
        with _damage(path), tarfile.open(path, "r:gz") as package:
            content = {
                member.name: package.extractfile(member).read()  # type: ignore[union-attr]
                for member in package
                if member.isfile() and (member.name.startswith(folder) or member.name == "package/emoji.json")
            }
            entries = json.loads(content["package/emoji.json"])
            return cls(
                vendor, entries, {entry["image"]: content[folder + entry["image"]] for entry in entries}
            )

    def picture(self, name: str) -> Image.Image:
        """The drawing (RGBA, 64x64) of a short name ("heart") or of an entry's `image`.

        Raises:
            ValueError: an unknown name; the message names the near one.
        """
        if name in self._by_short_name:
            name = self._by_short_name[name]["image"]
        if name not in self._files:
            raise unknown_name("emoji", name, self._by_short_name)
        return Image.open(io.BytesIO(self._files[name])).convert("RGBA")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, zlib.error, LookupError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged or not the expected package: {error!r}") from error


def _load(vendor: str, split: str, resolution: int | None, root: Path | None) -> ImageDataset:
    art = Art.load(vendor, root)
    side = SIDE if resolution is None else resolution
    # Both vendors list the same emoji in the same order: held out are the same ones.
    chosen = [e for k, e in enumerate(art.entries) if (k % 10 == 9) == (split == "test")]
    categories = sorted({entry["category"] for entry in art.entries})
    pictures = (upright(art.picture(entry["image"])) for entry in chosen)
    return ImageDataset(
        torch.stack([to_tensor(fit(picture, side, 3)) for picture in pictures]),
        name=f"emoji-{vendor}",
        split=split,
        channels=3,
        resolution=side,
        labels=torch.tensor([categories.index(entry["category"]) for entry in chosen]),
        label_names=categories,
        captions=[entry["name"].lower() for entry in chosen],
        license=f"MIT (package); {LICENSES[vendor]} (art)",
        citation=f"{CREDITS[vendor]}; emoji-datasource {VERSION}, C. Henderson.",
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
