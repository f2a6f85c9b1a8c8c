"""Files like those of the real data sets, in miniature."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image


def idx(array: np.ndarray) -> bytes:
    """A gzipped IDX file of unsigned bytes."""
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def emoji_archive(vendor: str, count: int = 20) -> bytes:
    """An npm package in miniature; picture k is a frame of colour (k, 0, 0) around a transparent hole."""
    frames = []
    for k in range(count):
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[..., 0], pixels[..., 3] = k, 255
        pixels[4:60, 4:60] = 0
        frames.append((f"face{k}", f"FACE NUMBER {k}", pixels))
    return _emoji_package(vendor, frames)


def flat_emoji_archive(vendor: str, colours: Mapping[str, tuple[int, int, int]]) -> bytes:
    """An npm package in which the emoji of each short name is a square of one colour."""
    squares = (
        (name, name.upper(), np.full((64, 64, 4), (*colour, 255), np.uint8))
        for name, colour in colours.items()
    )
    return _emoji_package(vendor, squares)


def _emoji_package(vendor: str, pictures: Iterable[tuple[str, str, np.ndarray]]) -> bytes:
    """A package of (short name, name, RGBA pixels)."""
    files = {}
    entries = []
    for k, (short_name, name, pixels) in enumerate(pictures):
        files[f"package/img/{vendor}/64/{k:04x}.png"] = png(pixels)
        entries.append(
            {
                "name": name,
                "short_names": [short_name],
                "category": "AB"[k % 2],
                "image": f"{k:04x}.png",
            }
        )
    files["package/emoji.json"] = json.dumps(entries).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
