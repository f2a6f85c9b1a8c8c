"""The trained checkpoints that ship with dmkit, and how they are found.

    from diffusers import DiffusionPipeline
    import dmkit.zoo

    pipe = DiffusionPipeline.from_pretrained(dmkit.zoo.path("fashion"))

Each checkpoint is a folder in Diffusers' layout with a model card (`README.md`). A pipeline may have a few
held-out `examples/`; a folder without `model_index.json` is a single model, such as an evaluator, for the
`from_pretrained` of its class.
"""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileFormatError, MissingDataError, unknown_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_HOME = Path(__file__).parent


@dataclass(frozen=True)
class ZooEntry:
    """One shipped pipeline: its name, folder, one-line description and pipeline class."""

    name: str
    folder: Path
    description: str
    pipeline: str


def list() -> builtins.list[ZooEntry]:
    """All shipped pipelines, by name."""
    entries = []
    # Without hidden ones: a model that is just being written begins with a dot.
    for index in sorted(_HOME.glob("[!.]*/model_index.json")):
        card = (index.parent / "README.md").read_text(encoding="utf-8")
        # The card opens with YAML front matter; the first paragraph under its title describes the model.
        body = card.split("---\n", 2)[-1].strip().splitlines()
        description = next(line for line in body if line.strip() and not line.startswith("#"))
        pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        entries.append(ZooEntry(index.parent.name, index.parent, description, pipeline))
    return entries


def path(name: str) -> str:
    """The folder of a shipped pipeline or single model, for `from_pretrained`.

    Raises:
        ValueError: no checkpoint of this name ships; the message names the nearest one.
    """
    known = {card.parent.name: card.parent for card in _HOME.glob("[!.]*/README.md")}
    if name not in known:
        raise unknown_name("zoo model", name, known)
    return str(known[name])


def examples(name: str) -> builtins.list[Path]:
    """Held-out images that ship beside a checkpoint, as PNG files in a fixed order.

    Raises:
        ValueError: as `path`.
    """
    return sorted((Path(path(name)) / "examples").glob("*.png"))


def card(folder: str | Path) -> dict[str, Any]:
    """The front matter of a model's card, `README.md`; empty where there is none.

    Raises:
        FileFormatError: front matter that is not YAML.
    """
    import yaml

    file = Path(folder) / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    try:
        front = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except yaml.YAMLError as error:
        raise FileFormatError(f"{file} does not open with valid YAML: {error}") from error
    return front if isinstance(front, dict) else {}


def is_one_step(folder: str | Path) -> bool:
    """Whether a model's card has the tag `one-step`: distilled, to be sampled in one step, unguided."""
    try:
        return "one-step" in (card(folder).get("tags") or [])
    except FileFormatError:
        return False


def folder_of(model: str) -> Path:
    """Where a model is, by zoo name or folder; a hub id is a path where nothing is.

    Raises:
        ValueError: an unknown zoo name.
    """
    return Path(model) if Path(model).is_dir() or "/" in model else Path(path(model))


def reference(model: str) -> str:
    """What a model's images are measured against: the test split of the data set that its card names.

    Args:
        model: a zoo name, or a pipeline folder whose `README.md` opens with YAML that has the key `dataset`.

    Returns:
        `"NAME:test"`, as `dmkit.evaluation.Reference.load` takes it.

    Raises:
        ValueError: an unknown zoo name, or no card that names a data set.
        FileFormatError: a card whose front matter is not YAML.
    """
    front = card(folder_of(model))
    if not isinstance(front.get("dataset"), str):
        raise ValueError(
            f"{model} has no card (README.md) whose front matter names the `dataset` to measure it against: "
            "give a data set or a folder of pictures as the reference (--reference)."
        )
    return f"{front['dataset']}:test"


def load(model: str, **arguments: Any) -> DiffusionPipeline:
    """A pipeline by zoo name, local folder, or hub id (`owner/name`).

    Args:
        model: what to load; a folder wins over a zoo name of the same spelling.
        arguments: passed to `DiffusionPipeline.from_pretrained` (`torch_dtype`, …).

    Raises:
        ValueError: neither a folder, a hub id nor a zoo name; the message names the nearest zoo name.
        MissingDataError: a path where no folder is, or a hub id that the hub does not give.
        FileFormatError: a folder that is not a whole pipeline.
    """
    from diffusers import DiffusionPipeline

    folder = Path(model)
    if not folder.is_dir() and "/" in model:
        if model.count("/") > 1 or model.startswith(("/", ".", "~")):
            raise MissingDataError(f"There is no folder {model}.")
        try:
            return DiffusionPipeline.from_pretrained(model, use_safetensors=True, **arguments)
        except OSError as error:
            raise MissingDataError(
                f"There is no folder {model}, and from the hub it cannot be had: {error}"
            ) from error
    if not folder.is_dir():
        folder = Path(path(model))
    if not (folder / "model_index.json").is_file():
        raise FileFormatError(f"{folder} is not a Diffusers pipeline: it has no model_index.json.")
    try:
        return DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **arguments)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, TypeError, ImportError) as error:
        # A missing file, a class that does not exist, weights of another shape: each raises its own.
        raise FileFormatError(f"The pipeline in {folder} cannot be loaded: {error}") from error
