"""Contrastive language-image training (CLIP, Radford et al. 2021) as a task, and its tokenizer.

    loss = ½ [CE(τ I Tᵀ, k = k) + CE(τ T Iᵀ, k = k)]

with unit embeddings I, T of a batch's images and captions and a learned scale τ; the negatives are the other
pairs of a process's micro-batch. These seldom differ in one word only. So that words which come in pairs of
opposites (left, right) are told apart, an image may have to prefer its caption also to the same one with the
opposites exchanged: a hard negative (NegCLIP, Yuksekgonul et al. 2023).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from .trainer import Step, Task

MAX_LENGTH = 77


def train_tokenizer(captions: Iterable[str], vocab_size: int = 1024) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's format (lower case, `</w>` ends a word), learnt from captions.

    Every byte is in the vocabulary, alone and at a word's end, so any text can be encoded; the two special
    tokens come last, as in CLIP's own vocabulary.

    Args:
        captions: the texts to learn merges from.
        vocab_size: at most this many tokens; at least 514 are needed.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    if vocab_size < len(known) + 2:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens alone are {len(known) + 2}.")
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    reference = CLIPTokenizer().backend_tokenizer
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in _merges(learner)]
    tokens = list(dict.fromkeys([*known, *(a + b for a, b in merges)]))[: vocab_size - 2]
    kept = set(tokens)
    merges = [pair for pair in merges if pair[0] + pair[1] in kept]
    vocab = {token: k for k, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def _merges(learner: Tokenizer) -> list[list[str]]:
    pairs = json.loads(learner.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]


def exchanged(caption: str, opposites: Mapping[str, str]) -> str:
    """A caption with each word of `opposites` in the place of its opposite, all at once."""
    return re.sub(r"\w+", lambda word: opposites.get(word[0], word[0]), caption)


def contrast(logits: Tensor) -> Tensor:
    """The loss of the module's docstring.

    Args:
        logits: (B, B + n) scaled cosines of B images with their B captions and n more texts, which are
            negatives of the images only.
    """
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T[: len(logits)], own)) / 2


class ContrastiveTask(Task):
    """Trains a `CLIPModel` on captioned images, and ships it with its tokenizer.

    Args:
        clip: the two towers.
        tokenizer: texts -> tokens.
        max_shift: images are moved at random by up to this many pixels (edges repeat), so that the image
            tower does not learn the pixel grid by heart.
        opposites: pairs of words; a caption that has one of them, with the pair exchanged, is a further
            negative of every image.
    """

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        max_shift: int = 1,
        opposites: Iterable[tuple[str, str]] = (),
    ):
        self.modules = {"clip": clip}
        self.tokenizer, self.max_shift = tokenizer, max_shift
        pairs = list(opposites)
        self.opposites = {**dict(pairs), **{other: word for word, other in pairs}}
        self.device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        self.device = device

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        # Attention is causal and the end token is pooled, so padding to the batch's longest changes nothing.
        captions = list(batch["captions"])
        others = [exchanged(caption, self.opposites) for caption in captions]
        texts = [*captions, *(o for o, caption in zip(others, captions, strict=True) if o != caption)]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        images = shifted(batch["images"], step, self.max_shift)
        out = self.modules["clip"](
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            pixel_values=images,
        )
        return {"contrast": contrast(out.logits_per_image.float())}

    def save(self, folder: Path, modules: Mapping[str, Any]) -> None:
        modules["clip"].save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def shifted(images: Tensor, step: Step, most: int) -> Tensor:
    """Images (B, C, H, W), each moved by up to `most` pixels each way; edges repeat."""
    if not most:
        return images
    side = images.shape[-1]
    moves = step.draws.integers(2 * most + 1, (len(images), 2))
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    rows = moves[:, :1] + torch.arange(side, device=images.device)
    columns = moves[:, 1:] + torch.arange(side, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
