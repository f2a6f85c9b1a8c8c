"""What a run of the demo gives: images, the parameters behind them, and the Python that makes them again."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..images import grid, save_png, to_pil

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 256  # pixels of the side of a picture on the page, about
KEPT = 40  # runs whose files are kept, of all visitors


@dataclass(frozen=True)
class Outcome:
    """A run's result.

    Attributes:
        images: by label, (N, C, H, W) float32 in [-1, 1].
        parameters: as JSON; they go into each PNG.
        code: Python that leaves `images`, equal to these.
        figures: rows of a table, errors and times.
        columns: the table's head.
        extra: what only one tab has.
    """

    images: Mapping[str, Tensor]
    parameters: Mapping[str, Any]
    code: str
    figures: list[list[Any]] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    extra: Any = None


def enlarged(picture: Image.Image, side: int = SHOWN) -> Image.Image:
    """Small pictures with their pixels as squares, which a browser would blur."""
    scale = max(1, side // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def sheet(images: Tensor, side: int = SHOWN) -> Image.Image:
    """A grid of images, at least about `side` pixels wide."""
    columns = max(1, round(len(images) ** 0.5 + 0.49))
    return grid(images, columns=columns, scale=max(1, side // (columns * images.shape[-1])), gap=2)


class Shelf:
    """The files of results: each run in a folder of its own, the oldest ones removed.

    Everything lies in one temporary folder, which `close` removes.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dmkit-app-"))
        self.uploads = self.root / "uploads"
        self._runs = self.root / "runs"
        for folder in (self.uploads, self._runs):
            folder.mkdir()
        self._lock = Lock()

    def close(self) -> None:
        """Removes all files."""
        shutil.rmtree(self.root, ignore_errors=True)

    def folder(self) -> Path:
        """A new folder; those of the oldest runs go."""
        with self._lock:
            new = Path(tempfile.mkdtemp(prefix=f"{time.time_ns()}-", dir=self._runs))
            for old in sorted(self._runs.iterdir())[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        return new

    def keep(self, outcome: Outcome) -> tuple[list[tuple[str, str]], list[str]]:
        """Writes an outcome's pictures, each with the parameters in its metadata.

        Returns:
            The enlarged sheets as (file, caption); and every image in its own size, to download.
        """
        folder = self.folder()
        shown, files = [], []
        for label, images in outcome.images.items():
            about = {**outcome.parameters, "label": label}
            name = re.sub(r"[^\w.-]+", "-", label).strip("-.") or "image"
            shown.append((str(save_png(sheet(images), folder / f"{name}-sheet.png", about)), label))
            for k, image in enumerate(images):
                own = {**about, "image": k}
                files.append(str(save_png(to_pil(image), folder / f"{name}-{k:02d}.png", own)))
        return shown, files

    def keep_picture(self, picture: Image.Image, name: str, parameters: Mapping[str, Any]) -> str:
        """Writes one picture with parameters; returns its path."""
        return str(save_png(picture, self.folder() / f"{name}.png", parameters))


def script(*lines: str | Iterable[str]) -> str:
    """Lines of Python that use `dmkit.zoo`: the imports first, empty groups left out."""
    flat = [line for group in lines for line in ([group] if isinstance(group, str) else group)]
    imports = {line for line in flat if line.startswith(("import ", "from "))}
    theirs = sorted(line for line in imports if not line.startswith("from dmkit"))
    ours = ["import dmkit.zoo", *sorted(imports - set(theirs))]
    body = [line for line in flat if line not in imports]
    return "\n".join([*theirs, *([""] if theirs else []), *ours, "", *body]) + "\n"


def call_text(**arguments: Any) -> str:
    """Keyword arguments as Python text, those that are None left out: `, prompt='a cat', scale=0.5`."""
    return "".join(f", {name}={value!r}" for name, value in arguments.items() if value is not None)
