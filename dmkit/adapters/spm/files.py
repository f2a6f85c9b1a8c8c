"""SPM files: reading and writing them.

The layout of the released adapters, which other tools read as a LoRA ("kohya"): per layer three tensors,
`lora_unet_` + the module's name with underscores for dots + `.lora_down.weight` (D), `.lora_up.weight` (U)
and `.alpha` (α); in the header, as strings, `prompts` (the targets, joined by commas), `rank` and `alpha`.
The second layout is Diffusers' own ("peft"): `unet.` or `transformer.` + name + `.lora_A.weight` or
`.lora_B.weight`, scaled by 1. Both carry one more header entry, `dmkit_spm`: JSON with a format version, the
targets as a list and how the adapter was trained.

Names with underscores for dots are not turned back by guessing: `weights.resolve` compares them with the
layers of a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..._files import atomic_file
from ...errors import FileFormatError, unknown_name
from .weights import KOHYA_PREFIX, SPMLayer, SPMMetadata, SPMWeights, key_of
from .weights import from_model as from_model

FORMAT = 1
FORMATS = ("kohya", "peft")
COMPONENTS = ("unet", "transformer")
HEADER_KEY = "dmkit_spm"
DIFFUSERS_KEY = "lora_adapter_metadata"
# Header entries that are made anew on writing.
OURS = (HEADER_KEY, DIFFUSERS_KEY, "format")
# What the header may say of a training; all may be missing.
_TEXTS, _NUMBERS = ("surrogate", "base_model", "architecture"), ("eta", "anchoring", "iterations", "seed")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_PARTS = {
    "kohya": {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"},
    "peft": {".lora_A.weight": "down", ".lora_B.weight": "up"},
}


# Out of a file


def read_spm(path: str | Path) -> SPMWeights:
    """Reads an adapter in either layout, the released ones too; tensors keep their type.

    Args:
        path: a `.safetensors` file.

    Raises:
        FileFormatError: missing, truncated or pickled; tensors of no SPM or of a text encoder, incomplete
            layers, ranks that differ, weights that are not finite; a header of another format version.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLED:
        raise FileFormatError(f"{path} is a pickled file, which can run code; only .safetensors is read.")
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder; name the .safetensors file in it.")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        if path.is_file() and _is_pickled(path):
            raise FileFormatError(
                f"{path} is a pickled file, whatever its name; only safetensors is read."
            ) from error
        raise FileFormatError(f"{path} is missing, truncated or not a safetensors file: {error}") from error
    return parse(tensors, header, str(path))


def _is_pickled(path: Path) -> bool:
    """Only for a file that is no safetensors: one may begin with these bytes, the length of its header."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def parse(
    tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None, source: str = ""
) -> SPMWeights:
    """An adapter from the tensors of a file and its header; see `read_spm`.

    Args:
        tensors: by key of either layout.
        header: strings.
        source: what messages call it.

    Raises:
        FileFormatError: as `read_spm`.
    """
    header, source = dict(header or {}), source or "The state dict"
    for key in tensors:
        if key.startswith(("lora_te", "text_encoder")):
            raise FileFormatError(
                f"{source} also adapts a text encoder ({key}); an SPM leaves it alone. Load this file as an "
                "ordinary LoRA."
            )
    layout = "kohya" if any(key.startswith(KOHYA_PREFIX) for key in tensors) else "peft"
    component, parts = _split_keys(tensors, layout, source)
    alphas = _alphas_of_diffusers(header, component, source)
    layers = {}
    for name, found in parts.items():
        for part in ("down", "up"):
            if part not in found:
                raise FileFormatError(f"{source} lacks {key_of(name, part, layout, component)}.")
        rank = found["down"].shape[0] if found["down"].ndim else 0
        found.setdefault("alpha", torch.tensor(float(alphas or rank), dtype=found["down"].dtype))
        layers[name] = _checked(name, SPMLayer(**found), layout, component, source)
    if not layers:
        raise FileFormatError(f"{source} holds no adapter.")
    first, rank = next((name, layer.rank) for name, layer in layers.items())
    for name, layer in layers.items():
        if layer.rank != rank:
            raise FileFormatError(f"{source} has rank {rank} in {first} but {layer.rank} in {name}.")
    metadata = _metadata(header, source)
    return SPMWeights(layers, metadata, component, {k: v for k, v in header.items() if k not in OURS})


def _split_keys(
    tensors: Mapping[str, Tensor], layout: str, source: str
) -> tuple[str, dict[str, dict[str, Tensor]]]:
    component, parts = "unet", dict[str, dict[str, Tensor]]()
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _PARTS[layout] if key.endswith(suffix)), None)
        if suffix is None or (layout == "kohya" and not key.startswith(KOHYA_PREFIX)):
            raise FileFormatError(f"{source} is no SPM file: unknown key {key!r}.")
        name = key.removesuffix(suffix).removeprefix(KOHYA_PREFIX if layout == "kohya" else "")
        prefix = name.partition(".")[0]
        if layout == "peft" and prefix in COMPONENTS:
            component, name = prefix, name.partition(".")[2]
        parts.setdefault(name, {})[_PARTS[layout][suffix]] = tensor
    return component, parts


def _checked(name: str, layer: SPMLayer, layout: str, component: str, source: str) -> SPMLayer:
    keys = {part: key_of(name, part, layout, component) for part in SPMLayer._fields}
    for part, tensor in zip(SPMLayer._fields, layer, strict=True):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise FileFormatError(
                f"{source}: {keys[part]} is of type {tensor.dtype}, not floating point of 16 bits or more."
            )
        if not tensor.isfinite().all():
            raise FileFormatError(f"{source}: {keys[part]} holds NaN or infinite values.")
    down, up, alpha = layer
    if down.ndim not in (2, 4) or not down.shape[0]:
        raise FileFormatError(f"{source}: {keys['down']} has shape {tuple(down.shape)}.")
    if up.ndim != down.ndim or up.shape[1] != down.shape[0]:
        raise FileFormatError(
            f"{source}: {keys['up']} has shape {tuple(up.shape)}, which does not fit "
            f"{tuple(down.shape)} of {keys['down']}."
        )
    if alpha.numel() != 1 or not alpha > 0:
        raise FileFormatError(
            f"{source}: {keys['alpha']} should be one positive number, not {alpha.tolist()}."
        )
    return layer


def _alphas_of_diffusers(header: Mapping[str, str], component: str, source: str) -> float | None:
    """α of a file that Diffusers wrote: it keeps PEFT's config in the header."""
    if DIFFUSERS_KEY not in header:
        return None
    try:
        config = {k.removeprefix(f"{component}."): v for k, v in json.loads(header[DIFFUSERS_KEY]).items()}
        alpha = float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"{source} has an unreadable {DIFFUSERS_KEY} in its header: {error!r}"
        ) from error
    for option in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora"):
        if config.get(option):
            raise FileFormatError(f"{source} is no plain LoRA: its config has {option}.")
    return alpha


def _metadata(header: Mapping[str, str], source: str) -> SPMMetadata:
    if HEADER_KEY not in header:
        return SPMMetadata(targets=_targets(header.get("prompts", "")))
    try:
        content = json.loads(header[HEADER_KEY])
        version = content.pop("format")
        if version != FORMAT:
            raise FileFormatError(f"{source} has format {version} of SPM files; this version reads {FORMAT}.")
        if not isinstance(content["targets"], list):
            raise TypeError(f"targets should be a list, not {content['targets']!r}")
        said = {name: content[name] for name in (*_TEXTS, *_NUMBERS) if content.get(name) is not None}
        for name, value in said.items():
            text = name in _TEXTS
            if isinstance(value, bool) or not isinstance(value, str if text else int | float):
                raise TypeError(f"{name} should be a {'text' if text else 'number'}, not {value!r}")
        return SPMMetadata(targets=tuple(content["targets"]), **said)
    except FileFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{source} has an unreadable {HEADER_KEY} in its header: {error!r}") from error


def _targets(prompts: str) -> tuple[str, ...]:
    return tuple(target.strip() for target in prompts.split(",") if target.strip())


# Into a file


def save_spm(weights: SPMWeights, path: str | Path, format: str = "kohya") -> None:
    """Writes an adapter, all of it or nothing; tensors keep their type.

    Args:
        weights: the adapter.
        path: a `.safetensors` file; its folder is made.
        format: `kohya`, the layout of the released adapters; or `peft`, which has no α: U is written times
            α / r.

    Raises:
        ValueError: an unknown layout, another ending, or names with underscores for dots in layout `peft`.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} should end in .safetensors.")
    tensors: dict[str, Tensor] = {}
    for name, layer in weights.layers.items():
        if format == "kohya":
            named = dict(zip(SPMLayer._fields, layer, strict=True))
        elif "." in name:
            named = {"down": layer.down, "up": layer.up if layer.scale == 1 else layer.up * layer.scale}
        else:
            raise ValueError(
                f"Layer {name!r} may be more than one module; resolve the weights with a model first."
            )
        for part, tensor in named.items():
            key = key_of(name, part, format, weights.component)
            if key in tensors:
                raise ValueError(f"Two layers would have the key {key}.")
            tensors[key] = tensor.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        save_file(tensors, str(draft), metadata={**weights.header, **_header(weights)})


def _header(weights: SPMWeights) -> dict[str, str]:
    metadata, kept = weights.metadata, weights.header
    ours = {HEADER_KEY: json.dumps({"format": FORMAT, **asdict(metadata)})}
    # The released tools read these three; spelt as they were found as long as they say the same.
    if _targets(kept.get("prompts", "")) != metadata.targets:
        ours["prompts"] = ",".join(metadata.targets)
    ours["rank"] = str(weights.rank)
    if kept.get("alpha") not in (str(weights.alpha), f"{weights.alpha:g}"):
        ours["alpha"] = str(weights.alpha)
    return ours
