"""The data of a distillation that needs no image: prompts, encoded once and kept on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import FileFormatError
from ..training.caching import CachedTensors, cached, weights_fingerprint
from ..training.prompting import Conditions, encode, image_size

# Columns of `Conditions.added`; PyTorch's default collation makes batches of flat rows only.
ADDED = "added."
# Kept in half precision: of a text encoder, and large. Sizes must stay exact.
HALVED = ("encoder_hidden_states", f"{ADDED}text_embeds")


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file, without empty ones.

    Raises:
        FileFormatError: a missing file, or one without a prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is missing or is not text: {error}") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise FileFormatError(f"{path} holds no prompt.")
    return prompts


def columns(conditions: Conditions) -> dict[str, Tensor]:
    """Conditions as named columns, in the precision in which they are kept."""
    flat = {**conditions.arguments, **{ADDED + name: value for name, value in conditions.added.items()}}
    return {name: value.half() if name in HALVED else value for name, value in flat.items()}


def conditions_of(rows: Mapping[str, Tensor]) -> Conditions:
    """The inverse of `columns`, in the precision of the rows; columns of other names are left out."""
    return Conditions(
        {name: value for name, value in rows.items() if name.startswith("encoder_")},
        {name.removeprefix(ADDED): value for name, value in rows.items() if name.startswith(ADDED)},
    )


def encode_all(pipe: Any, prompts: Sequence[str], batch_size: int = 64) -> dict[str, Tensor]:
    """Columns of the prompts, on the CPU."""
    starts = range(0, len(prompts), batch_size)
    bar = tqdm(starts, desc="Encoding prompts", mininterval=5.0, disable=len(starts) < 10)
    parts = [columns(encode(pipe, prompts[k : k + batch_size]).to("cpu")) for k in bar]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def encode_prompts(pipe: Any, prompts: Sequence[str], folder: Path) -> CachedTensors:
    """`encode_all`, kept in a file of `folder` that is named after the prompts.

    Raises:
        ValueError: no prompt.
        TypeError: as `dmkit.training.prompting.encode`.
    """
    if not prompts:
        raise ValueError("There is no prompt to train with.")
    texts = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    return cached(folder / f"prompts-{texts}.safetensors", _encoders(pipe), lambda: encode_all(pipe, prompts))


def _encoders(pipe: Any) -> str:
    """16 hex digits of all that makes conditions of texts."""
    digest = hashlib.sha256(f"{type(pipe).__name__} {image_size(pipe)}".encode())
    for name, part in sorted(pipe.components.items()):
        if name.startswith("text_encoder") and isinstance(part, nn.Module):
            digest.update(weights_fingerprint(part).encode())
        elif name.startswith("tokenizer") and part is not None:
            digest.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()[:16]
