"""What a text-conditioned denoiser is given besides x_t and t, for any of Diffusers' text-to-image layouts.

    pipeline                     the denoiser's keywords              its `added_cond_kwargs`
    StableDiffusion-like         encoder_hidden_states                none
    StableDiffusionXL-like       encoder_hidden_states                text_embeds, time_ids
    PixArt-like                  encoder_hidden_states,               resolution, aspect_ratio (where the
                                 encoder_attention_mask               model takes them)

`dmkit.training.caching.encode_prompts` keeps the same hidden states of whole data sets on the disk, rounded
to float16; here they come as the pipeline itself makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """A batch of conditions; every tensor's first dimension is the batch.

    Attributes:
        arguments: the denoiser's keywords: `encoder_hidden_states` (B, L, D), perhaps
            `encoder_attention_mask` (B, L).
        added: what goes into `added_cond_kwargs`: `text_embeds` (B, P) and `time_ids` (B, 6), or `resolution`
            (B, 2) and `aspect_ratio` (B, 1); empty for models without them.
    """

    arguments: dict[str, Tensor]
    added: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arguments["encoder_hidden_states"])

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """The same conditions with every tensor changed."""
        return Conditions(
            {name: change(value) for name, value in self.arguments.items()},
            {name: change(value) for name, value in self.added.items()},
        )

    def rows(self, index: Any) -> Conditions:
        """Some of the items; `index` is a tensor, list or slice."""
        return self.map(lambda value: value[index])

    def repeat(self, count: int) -> Conditions:
        """Each item `count` times in a row."""
        return self.map(lambda value: value.repeat_interleave(count, dim=0))

    def to(self, device: torch.device | str) -> Conditions:
        return self.map(lambda value: value.to(device))

    def sized(
        self,
        height: int,
        width: int,
        *,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
    ) -> Conditions:
        """The same conditions for images of another size, where the model is told the size.

        Args:
            height, width: the image in pixels.
            original: (height, width) that the image was cut from (StableDiffusionXL); its own if None.
            crop: (top, left) of the cut (StableDiffusionXL).
        """
        sizes = {
            "time_ids": (*(original or (height, width)), *crop, height, width),
            "resolution": (height, width),
            "aspect_ratio": (height / width,),
        }
        told = {
            name: value.new_tensor(sizes[name]).expand(len(self), -1)
            for name, value in self.added.items()
            if name in sizes
        }
        return Conditions(self.arguments, {**self.added, **told})

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Batches of one model's conditions, one after the other."""
        first = parts[0]
        return Conditions(
            {name: torch.cat([part.arguments[name] for part in parts]) for name in first.arguments},
            {name: torch.cat([part.added[name] for part in parts]) for name in first.added},
        )


def denoiser_of(pipe: Any) -> Any:
    """The pipeline's denoiser: its `unet` or its `transformer`.

    Raises:
        TypeError: a pipeline with neither.
    """
    for name in ("unet", "transformer"):
        if (denoiser := getattr(pipe, name, None)) is not None:
            return denoiser
    raise TypeError(f"{type(pipe).__name__} has neither a `unet` nor a `transformer`.")


def image_size(pipe: Any) -> tuple[int, int]:
    """(height, width) in pixels of the images that the pipeline makes if it is not told otherwise."""
    size = denoiser_of(pipe).config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str], device: torch.device | str | None = None) -> Conditions:
    """Prompts as the pipeline's denoiser is given them, for images of the pipeline's own size.

    A StableDiffusionXL pipeline with `force_zeros_for_empty_prompt` samples its unconditional half with zeros
    in place of the empty prompt; so it is here, wherever a prompt is empty.

    Args:
        pipe: a text-to-image pipeline of one of the layouts above, with its text encoders.
        prompts: B prompts, at least one.
        device: where to encode; the pipeline's own if None.

    Raises:
        TypeError: a pipeline of another layout.
        ValueError: no prompt.
    """
    prompts = list(prompts)
    if not prompts:
        raise ValueError("There is no prompt to encode.")
    denoiser, device = denoiser_of(pipe), torch.device(device or pipe.device)
    common: dict[str, Any] = {
        "prompt": prompts,
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    size = image_size(pipe)
    if getattr(denoiser.config, "addition_embed_type", None) == "text_time":
        states, _, pooled, _ = pipe.encode_prompt(**common)
        if pipe.config.get("force_zeros_for_empty_prompt"):
            worded = torch.tensor([bool(prompt) for prompt in prompts], device=device)
            states, pooled = states * worded[:, None, None], pooled * worded[:, None]
        added = {"text_embeds": pooled, "time_ids": pooled.new_zeros(len(prompts), 6)}
        return Conditions({"encoder_hidden_states": states}, added).sized(*size)
    takes = inspect.signature(pipe.encode_prompt).parameters if hasattr(pipe, "encode_prompt") else {}
    if "prompt_attention_mask" in takes and hasattr(denoiser, "use_additional_conditions"):
        states, mask, _, _ = pipe.encode_prompt(**common)
        added = {}
        if denoiser.use_additional_conditions:
            added = {"resolution": states.new_zeros(len(prompts), 2)}
            added["aspect_ratio"] = states.new_zeros(len(prompts), 1)
        arguments = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        return Conditions(arguments, added).sized(*size)
    if hasattr(pipe, "unet") and takes and getattr(denoiser.config, "addition_embed_type", None) is None:
        return Conditions({"encoder_hidden_states": pipe.encode_prompt(**common)[0]})
    raise TypeError(
        f"{type(pipe).__name__} with a {type(denoiser).__name__} takes its text in a way that is not known "
        "here; known: pipelines like StableDiffusion, StableDiffusionXL and PixArt."
    )


def predict(
    denoiser: Callable[..., Any], x: Tensor, t: Tensor | int | float, conditions: Conditions
) -> Tensor:
    """The model's own prediction (ε, v or x_0, as it was trained), without guidance.

    Args:
        denoiser: the network, or whatever is called as it is (a wrapped one).
        x: x_t (B, C, H, W), scaled as the scheduler wants it.
        t: one timestep for all, or (B,).
        conditions: B conditions.

    Returns:
        (B, C, H, W); the variances that some models predict beside it are left out.
    """
    timesteps = torch.as_tensor(t, device=x.device).expand(len(x))
    keywords: dict[str, Any] = dict(conditions.arguments)
    if conditions.added:
        keywords["added_cond_kwargs"] = conditions.added
    prediction: Tensor = denoiser(x, timestep=timesteps, **keywords, return_dict=False)[0]
    return prediction[:, : x.shape[1]]
