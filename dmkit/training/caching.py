"""Encoded data sets on disk: what frozen networks make of images and captions, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .._files import atomic_file, load_tensors
from ..data import ImageDataset
from ..errors import FileFormatError


class CachedTensors(Dataset):
    """Rows of tensors of equal length; an item is a dict of one row of each, in float32.

    The tensors of a file stay on the disk until their rows are read.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        columns = {name: tensor[indices].float().unbind() for name, tensor in self.tensors.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def cached(path: Path, fingerprint: str, build: Callable[[], Mapping[str, Tensor]]) -> CachedTensors:
    """The rows in the safetensors file `path`; built and written (atomically) if it does not hold them yet.

    Args:
        path: the cache file.
        fingerprint: names what the rows are made from; a file with another one is built anew.
        build: makes the tensors.
    """
    if not (path.is_file() and _fingerprint(path) == fingerprint):
        tensors = {name: tensor.contiguous() for name, tensor in build().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as draft:
            save_file(tensors, str(draft), metadata={"fingerprint": fingerprint})
    return CachedTensors(load_tensors(path))


def _fingerprint(path: Path) -> str | None:
    try:
        with safe_open(str(path), "pt") as file:
            return (file.metadata() or {}).get("fingerprint")
    except (OSError, SafetensorError):  # truncated or foreign: built anew
        return None


def weights_fingerprint(module: nn.Module) -> str:
    """16 hex digits of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_images(dataset: ImageDataset, vae: Any, batch_size: int = 128) -> dict[str, Tensor]:
    """Means and standard deviations of an autoencoder's latents, float16 (N, C, h, w), not yet scaled."""
    means, deviations = [], []
    for images in _progress(dataset.batches_uint8(batch_size), len(dataset), batch_size, "images"):
        posterior = vae.encode(images.to(vae.device).float().div(127.5).sub(1)).latent_dist
        means.append(posterior.mean.half().cpu())
        deviations.append(posterior.std.half().cpu())
    return {"latent_mean": torch.cat(means), "latent_std": torch.cat(deviations)}


@torch.no_grad()
def encode_prompts(
    captions: Sequence[str], text_encoder: Any, tokenizer: Any, batch_size: int = 128
) -> Tensor:
    """Last hidden states of captions padded to the tokenizer's full length, float16 (N, L, D): what
    `StableDiffusionPipeline` gives its denoiser.
    """
    parts = []
    starts = range(0, len(captions), batch_size)
    for start in _progress(starts, len(captions), batch_size, "captions"):
        tokens = tokenizer(
            list(captions[start : start + batch_size]),
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        parts.append(text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state.half().cpu())
    return torch.cat(parts)


def _progress(batches: Any, count: int, batch_size: int, what: str) -> Iterator[Any]:
    total = -(-count // batch_size)
    return iter(tqdm(batches, total=total, desc=f"Encoding {what}", mininterval=5.0, disable=total < 10))


def encode_dataset(
    dataset: ImageDataset, vae: Any, text_encoder: Any, tokenizer: Any, folder: Path
) -> CachedTensors:
    """Latents and caption embeddings of a captioned data set, cached in two files of `folder`.

    Returns:
        rows `latent_mean`, `latent_std` (C, h, w) and `embeddings` (L, D).

    Raises:
        FileFormatError: a data set without captions.
    """
    captions = dataset.captions
    if captions is None:
        raise FileFormatError(f"{dataset.name} has no captions.")
    name = f"{Path(dataset.name).name}-{dataset.split}-{dataset.resolution}"
    latents = cached(
        folder / f"{name}-latents.safetensors",
        f"{dataset.fingerprint()}-{weights_fingerprint(vae)}",
        lambda: encode_images(dataset, vae),
    )
    words = json.dumps([list(captions), tokenizer.get_vocab()], sort_keys=True)
    texts = hashlib.sha256(words.encode()).hexdigest()[:16]
    embeddings = cached(
        folder / f"{name}-captions.safetensors",
        f"{texts}-{weights_fingerprint(text_encoder)}",
        lambda: {"embeddings": encode_prompts(captions, text_encoder, tokenizer)},
    )
    return CachedTensors({**latents.tensors, **embeddings.tensors})
