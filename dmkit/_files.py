"""Writing that is all there or not there at all, and reading that never unpickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import FileFormatError

UNFINISHED = ".unfinished-"
Model = TypeVar("Model")


def _sync(path: Path) -> None:
    """Flushes a file or folder entry to the disk, so that a power cut cannot leave a renamed but empty
    file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(target: str | os.PathLike) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` only when the block ends without an error.

    An existing `target` is replaced. Whatever a killed process leaves behind starts with `.unfinished-`.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f"{UNFINISHED}{target.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.rglob("*")):
            _sync(path)
        _sync(draft)
        remove_folder(target)
        os.replace(draft, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A file to write beside `target`, with its ending; it takes its place when the block ends well."""
    draft = target.with_name(f"{UNFINISHED}{os.getpid()}-{target.name}")
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Deletes a folder; a kill half way never leaves something that looks whole under the old name."""
    if folder.exists():
        doomed = folder.parent / f"{UNFINISHED}{folder.name}-removed-{os.getpid()}"
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sweep_unfinished(folder: Path) -> None:
    """Removes what killed runs left in `folder`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON atomically (a temporary file in the same folder, then a rename)."""
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is missing or is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} should hold a JSON object, not {type(content).__name__}.")
    return content


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path} is missing, truncated or not a safetensors file: {error}") from error


def load_whole(kind: type[Model], folder: str | Path) -> Model:
    """What `kind.save_pretrained` wrote, in eval mode.

    Diffusers gives weights that a file lacks their first random values, with a warning.

    Args:
        kind: a subclass of `ModelMixin`.
        folder: with its configuration and weights.

    Raises:
        FileFormatError: weights that are missing, or are none of this model's.
        OSError: no such folder, or a damaged file.
    """
    loads: Any = kind
    model, found = loads.from_pretrained(folder, output_loading_info=True)
    if missing := found["missing_keys"]:
        raise FileFormatError(f"{folder} lacks {', '.join(sorted(missing))}.")
    if foreign := found["unexpected_keys"]:
        raise FileFormatError(f"{folder} has weights of another model: {', '.join(sorted(foreign))}.")
    return model.eval()


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> dict[str, Any]:
    """Writes an optimiser's tensors as safetensors; returns the rest of its state, which is JSON."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().contiguous().cpu()
            else:
                scalars[f"{index}.{key}"] = value
    save_file(tensors, str(path))
    return {"param_groups": state["param_groups"], "scalars": scalars}


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path, rest: Mapping[str, Any]) -> None:
    """The inverse of `save_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**load_tensors(path), **rest["scalars"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
    except ValueError as error:
        raise FileFormatError(f"{path} belongs to another model or optimiser: {error}") from error
