"""Embeddings of texts by a pipeline's own `encode_prompt`, under the names of the pipeline's arguments."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

# What `encode_prompt` and the pipeline's call both know, and where the call's default counts.
SHARED = ("clip_skip", "max_sequence_length", "clean_caption")


def encode_texts(pipe: Any, texts: list[str], guided: bool, **settings: Any) -> dict[str, Tensor]:
    """
    Args:
        pipe: a pipeline with the `encode_prompt` of Stable Diffusion 1/2, SDXL, LCM, PixArt, SD3 or Flux.
        texts: B texts.
        guided: add the embeddings of the empty text, as `negative_…`.
        settings: other arguments of `encode_prompt`.

    Returns:
        `prompt_embeds` (B, L, C); where the pipeline has them `prompt_attention_mask` (B, L) or
        `pooled_prompt_embeds` (B, C').

    Raises:
        TypeError: a setting that `encode_prompt` does not have.
        ValueError: `guided` for a pipeline without guidance.
    """
    known = inspect.signature(pipe.encode_prompt).parameters
    takes = inspect.signature(pipe.__call__).parameters
    for name in settings:
        if name not in known:
            raise TypeError(f"{type(pipe).__name__}.encode_prompt has no argument {name!r}.")
    usual = {
        "device": pipe._execution_device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": guided,
        "prompt_2": None,
        "prompt_3": None,
        **{name: takes[name].default for name in SHARED if name in takes},
    }
    settings = {name: value for name, value in usual.items() if name in known} | settings
    found = dict(zip(_order(takes), pipe.encode_prompt(texts, **settings), strict=False))
    if guided and found.get("negative_prompt_embeds") is None:
        raise ValueError(f"{type(pipe).__name__} has no guidance that could be on at the same time.")
    return {name: value for name, value in found.items() if guided or not name.startswith("negative_")}


def _order(takes: Any) -> list[str]:
    """Names of what `encode_prompt` returns, from the parameters of the pipeline's call."""
    if "prompt_attention_mask" in takes:  # PixArt
        names = ["prompt_embeds", "prompt_attention_mask"]
        return [*names, *(f"negative_{name}" for name in names)]
    if "true_cfg_scale" in takes:  # Flux; the third, `text_ids`, the pipeline makes anew
        return ["prompt_embeds", "pooled_prompt_embeds"]
    names = (
        ["prompt_embeds", "pooled_prompt_embeds"] if "pooled_prompt_embeds" in takes else ["prompt_embeds"]
    )
    return [sign + name for name in names for sign in ("", "negative_")]


def has_guidance(pipe: Any) -> bool:
    """Whether `guidance_scale` above 1 means a second, unconditional half of the batch. Flux and consistency
    models take it as an input of the network.
    """
    takes = inspect.signature(pipe.__call__).parameters
    if "guidance_scale" not in takes or "true_cfg_scale" in takes:
        return False
    config = getattr(getattr(pipe, "unet", None), "config", None)
    return getattr(config, "time_cond_proj_dim", None) is None
