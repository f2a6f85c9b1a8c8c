"""Latent weights as a file, with the frequency that they mean something by.

A file is one `biper.safetensors`: the module's state, and in the header, as JSON under `dmkit_biper`, a
format version, and frequency, stage, whether inputs are binary, and padding of each binary layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...._files import atomic_file
from ....errors import FileFormatError
from .converting import binary_layer, binary_layers, replace
from .layers import BiPerConv2d, BiPerLinear

FORMAT = 1
FILE = "biper.safetensors"
HEADER_KEY = "dmkit_biper"


def save_binary(model: nn.Module, folder: str | os.PathLike) -> None:
    """Writes a module with binary layers into a folder, of either stage.

    Raises:
        ValueError: no binary layer.
    """
    layers = {
        name: {
            "omega": layer.omega,
            "stage": layer.stage,
            "binarize_input": layer.binarize_input,
            **({"pad_value": layer.pad_value} if isinstance(layer, BiPerConv2d) else {}),
        }
        for name, layer in binary_layers(model).items()
    }
    write(Path(folder) / FILE, model.state_dict(), {"layers": layers})


def load_binary(
    model: nn.Module, folder: str | os.PathLike, *, omega: float | None = None
) -> dict[str, nn.Module]:
    """Makes the layers of a plain module binary that were so in a saved one, and reads the state.

    Args:
        model: of the architecture that was saved, before or after `binarize`.
        folder: what `save_binary` wrote.
        omega: the frequency to insist on; that of the file by default.

    Returns:
        The binary layers by name.

    Raises:
        FileFormatError: missing, truncated or foreign files, another architecture or frequency. The module
            may have binary layers then, but holds none of the file's numbers.
    """
    path = Path(folder) / FILE
    tensors, header = read(path)
    try:
        settings = dict(header["layers"])
        for name, about in settings.items():
            if omega is not None and about["omega"] != omega:
                raise FileFormatError(f"{path}: {name} was trained with omega {about['omega']}, not {omega}.")
        for name, about in settings.items():
            layer = model.get_submodule(name)
            if type(layer) in (nn.Conv2d, nn.Linear):
                replace(model, name, binary_layer(layer, **about))
            elif isinstance(layer, BiPerConv2d | BiPerLinear):
                layer.stage = about["stage"]
            else:
                raise FileFormatError(f"{path}: {name} is a {type(layer).__name__} in this module.")
    except FileFormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} does not fit this module: {error!r}") from error
    fill(model, tensors, path)
    return dict(binary_layers(model))


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """One safetensors file with a header of ours, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with atomic_file(path) as draft:
        save_file(values, str(draft), metadata={HEADER_KEY: json.dumps({"format": FORMAT, **header})})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write`.

    Raises:
        FileFormatError: missing, truncated, without our header, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path} is missing, truncated or not a safetensors file: {error}") from error
    try:
        header = json.loads(text or "null")
    except ValueError as error:
        raise FileFormatError(f"{path} has an unreadable header: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("layers"), dict):
        raise FileFormatError(f"{path} holds no binary layers: its header lacks {HEADER_KEY}.")
    if header.get("format") != FORMAT:
        raise FileFormatError(f"{path} has format {header.get('format')}; this version reads {FORMAT}.")
    return tensors, header


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Reads a whole state, after all of it has been compared.

    Raises:
        FileFormatError: names or shapes that do not fit, or another frequency.
    """
    mine = model.state_dict()
    wrong = [f"{name} is missing" for name in mine.keys() - tensors.keys()]
    wrong += [f"{name} is unknown" for name in tensors.keys() - mine.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(mine[name].shape)}"
        for name in mine.keys() & tensors.keys()
        if tensors[name].shape != mine[name].shape
    ]
    for name, layer in model.named_modules():
        if isinstance(layer, BiPerConv2d | BiPerLinear) and f"{name}.saved_omega" in tensors:
            try:
                layer.check_omega(tensors[f"{name}.saved_omega"])
            except ValueError as error:
                wrong.append(f"{name}: {error}")
    if wrong:
        raise FileFormatError(f"{path} does not fit this {type(model).__name__}: {'; '.join(sorted(wrong))}.")
    model.load_state_dict(dict(tensors))
