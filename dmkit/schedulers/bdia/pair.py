"""The noise code of an image: two neighbouring states, and everything that running them back needs to
know."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..._files import atomic_file, save_json
from ...errors import FileFormatError

FORMAT = "dmkit.bdia_latent_pair"
VERSION = 1
_TENSORS = ("z_T", "z_T_prev", "timesteps")


@dataclass
class BDIALatentPair:
    """What `invert` makes of an image and `reconstruct` and `edit` start from.

    z_T alone is not enough: the recurrence runs back only from both neighbours.

    Attributes:
        z_T: [B, C, H, W] float64, the state z_K at the noise end of the trajectory (EDICT: y).
        z_T_prev: [B, C, H, W] float64, its neighbour z_{K-1} (EDICT: x; plain DDIM inversion: None).
        timesteps: [K] the network times t_K … t_1 of the levels that the trajectory covers.
        method: `"bdia"`, `"edict"` or `"ddim"`.
        num_inference_steps: N, the steps of the whole grid.
        strength: the part of the grid that is covered, K = int(N strength).
        gamma: BDIA's gamma.
        guidance_scale: the guidance of the inversion; running back with another one is an edit.
        prompt: the prompt of the inversion (None for unconditional models).
        scheduler_config: the configuration of the sampler that runs the pair back.
        model_fingerprint: of the denoiser that made it (`fingerprint`).
        model_dtype: the dtype that denoiser ran in, as `"float32"`.
    """

    z_T: torch.Tensor  # noqa: N815  (the paper's symbol)
    z_T_prev: torch.Tensor | None  # noqa: N815
    timesteps: torch.Tensor
    method: str
    num_inference_steps: int
    strength: float
    gamma: float
    guidance_scale: float
    prompt: str | list[str] | None
    scheduler_config: dict[str, Any]
    model_fingerprint: str
    model_dtype: str

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `pair.safetensors` and `pair.json` into the folder, each in one atomic move."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        with atomic_file(folder / "pair.safetensors") as draft:
            safetensors.torch.save_file(tensors, draft)
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "tensors": _digest(folder / "pair.safetensors"),
            **facts,
        }
        save_json(folder / "pair.json", facts)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> BDIALatentPair:
        """Reads what `save_pretrained` wrote.

        Raises:
            FileFormatError: a file is missing, truncated, of another format or version, or the two files do
                not belong together.
        """
        folder = Path(directory)
        tensors_file, facts_file = folder / "pair.safetensors", folder / "pair.json"
        for file in (tensors_file, facts_file):
            if not file.is_file():
                raise FileFormatError(
                    f"{file} does not exist; a latent pair is pair.safetensors and pair.json."
                )
        try:
            facts = json.loads(facts_file.read_text())
        except ValueError as error:
            raise FileFormatError(f"{facts_file} is truncated or not JSON: {error}") from error
        if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
            raise FileFormatError(f"{facts_file} is not a latent pair: its format is not {FORMAT!r}.")
        version = facts.pop("version", None)
        if version != VERSION:
            raise FileFormatError(f"{facts_file} has format version {version}; this release reads {VERSION}.")
        try:
            tensors = safetensors.torch.load_file(tensors_file)
        except SafetensorError as error:
            raise FileFormatError(f"{tensors_file} is truncated or not safetensors: {error}") from error
        if facts.pop("tensors", None) != _digest(tensors_file):
            raise FileFormatError(f"{tensors_file} is not the file that {facts_file} was written with.")
        expected = {f.name for f in fields(cls)} - set(_TENSORS)
        if set(facts) != expected or not {"z_T", "timesteps"} <= set(tensors) <= set(_TENSORS):
            raise FileFormatError(
                f"{folder} lacks or adds entries: {sorted(set(facts) ^ expected)}, tensors {sorted(tensors)}."
            )
        return cls(**{"z_T_prev": None, **tensors, **facts})


def fingerprint(model: torch.nn.Module) -> str:
    """A short name for a model's weights that does not read all of them and is the same in fp32 and fp16.

    SHA-256 over each parameter's name, shape and first eight values in half precision; 16 hexadecimal digits.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().reshape(-1)[:8].half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
