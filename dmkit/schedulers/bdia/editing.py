"""`edit` and `edit_image`: another prompt on the way down, and where the image may change.

With an exact inversion the way down under the source prompt passes through the very states s of the way up,
so the unchanged image is at hand at every step. Two things are made of that, both by watching the states
after each network call, without a look into the network.

Local blending (DiffEdit, Couairon et al., ICLR 2023, arXiv 2210.11427, section 3.2): outside a mask m the
edit keeps the source's state,

    z <- s + m (z - s)

so that with m = 0 the source's z_0 comes back to the bit and the background with it, but for what the decoder
carries over the mask's edge. DiffEdit blends with the states of a DDIM inversion, which the way down does not
meet again; here both ways are one trajectory.

A mask from the two prompts (DiffEdit's section 3.1 compares their noise predictions on noised copies of the
image). Here the way down is held on s (m = 0) while the network is asked under the target prompt. Where a
step would have gone differs from s by a known multiple of the difference of both noise predictions at s: for
BDIA, with b_j = sigma_j - sigma_i alpha_j / alpha_i,

    z_{i-1} - s_{i-1} = (b_{i-1} - gamma b_{i+1}) (e_target - e_source)

whatever the network predicts. Its absolute value, summed over the steps and averaged over the channels, is
how hard the target prompt pulls at a place; the mask is where that is more than `threshold` times its mean.

Where an edit starts. The paper regenerates from the inversion's pair (z_N, z_{N-1}) as it is, in which
z_{N-1} still is the source's: the states of one parity have had the target's step from level N, those of the
other have not. That difference is the recurrence's root -gamma, an oscillation that decays by gamma a step,
and not at all for gamma = 1; it ends up in the picture. Moving z_{N-1} by what the target's step from z_N
differs from the source's,

    z_{N-1} <- z_{N-1} + F_N(N-1; target) - F_N(N-1; source),

starts both parities alike, for a network call under each prompt, and is nothing where the prompts agree, so
that reconstruction stays what it is. This is ours, not the paper's: `shift_start=False` is the paper's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ...errors import unknown_name
from .calling import denoiser
from .inversion import Regenerated, first_step, invert, reconstruct, run_back
from .pair import BDIALatentPair, fingerprint
from .trajectory import States, Watch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Track: TypeAlias = list[States]
"""The states after each network call of a way down."""

MASK_THRESHOLD = 1.0


class EditedImage(NamedTuple):
    """What `edit_image` gives.

    Attributes:
        pair: the noise code of the source image.
        reconstruction: the way down under the source prompt.
        edit: the way down under the target prompt.
        mask: [B or 1, 1, h, w] float64 in [0, 1] at the size of the latents, 1 where the image may change;
            None for the whole image.
    """

    pair: BDIALatentPair
    reconstruction: Regenerated
    edit: Regenerated
    mask: torch.Tensor | None


def edit_image(
    pipe: DiffusionPipeline,
    image: torch.Tensor | PIL.Image.Image | Sequence[PIL.Image.Image],
    source_prompt: str | list[str],
    target_prompt: str | list[str],
    *,
    num_inference_steps: int = 50,
    gamma: float = 0.94,
    guidance_scale: float = 3.0,
    source_guidance_scale: float | None = None,
    strength: float = 0.8,
    mask: Any = None,
    method: str = "bdia",
    shift_start: bool = True,
    **pipe_kwargs: Any,
) -> EditedImage:
    """Inverts an image under one prompt and regenerates it under another.

    Equal prompts and guidance give the image back, up to the autoencoder. Network calls for K levels: K up,
    K - 1 for the reconstruction, K + 1 for the edit (under the same prompt K - 1), K - 1 for `mask="auto"`
    (DDIM: K each, EDICT: 2K each).

    Args:
        pipe: a text-to-image pipeline.
        image: [B, C, H, W] in [-1, 1], or PIL images.
        source_prompt: what the image shows; one for the batch, or one an image.
        target_prompt: what it shall show.
        num_inference_steps: N >= 2 levels of the grid.
        gamma: in (0, 1]; 0.92 … 1 in the paper. Less edits better and inverts less far: the rounding grows by
            1 / gamma a step, and what would explode is refused.
        guidance_scale: classifier-free guidance of the edit.
        source_guidance_scale: of the inversion; by default the edit's.
        strength: in (0, 1], the part of the grid to climb; less keeps more of the image.
        mask: where the image may change: `"auto"` (`difference_mask`), or as for `edit`. None: everywhere.
        method: `"bdia"`, or a baseline: `"edict"` or `"ddim"`.
        shift_start: as for `edit`.
        pipe_kwargs: passed to the pipeline on every way, such as `negative_prompt`.

    Raises:
        ValueError: as `invert` and `edit`, or an unknown word for the mask.
    """
    if isinstance(mask, str) and mask != "auto":
        raise unknown_name("mask", mask, ("auto",))
    pair = invert(
        pipe,
        image,
        source_prompt,
        num_inference_steps=num_inference_steps,
        gamma=gamma,
        guidance_scale=guidance_scale if source_guidance_scale is None else source_guidance_scale,
        strength=strength,
        method=method,
        **pipe_kwargs,
    )
    source: Track = []
    reconstruction = reconstruct(pipe, pair, watch=_recording(source), **pipe_kwargs)
    if isinstance(mask, str):
        mask = difference_mask(pipe, pair, target_prompt, source=source, **pipe_kwargs)
    elif mask is not None:
        mask = latent_mask(mask, pair.z_T)
    edited = edit(
        pipe,
        pair,
        target_prompt,
        guidance_scale=guidance_scale,
        mask=mask,
        source=source,
        shift_start=shift_start,
        **pipe_kwargs,
    )
    return EditedImage(pair, reconstruction, edited, mask)


def edit(
    pipe: DiffusionPipeline,
    pair: BDIALatentPair,
    prompt: str | list[str] | None,
    *,
    guidance_scale: float | None = None,
    mask: torch.Tensor | PIL.Image.Image | Sequence[PIL.Image.Image] | None = None,
    source: Track | None = None,
    shift_start: bool = True,
    **pipe_kwargs: Any,
) -> Regenerated:
    """Runs a pair back under another prompt: the edited image.

    Args:
        pipe: the pipeline the pair was made with, or a fine-tuned one.
        pair: from `invert`, best with gamma in [0.85, 0.96] and strength about 0.8.
        prompt: what the image shall show.
        guidance_scale: guidance on the way down; the inversion's by default.
        mask: where the image may change, 1 or white, and where the source is kept, 0 or black: [H, W],
            [B, H, W] or [B, 1, H, W] in [0, 1], or PIL images, of the image's shape or the latents'.
        source: the states to keep outside the mask, one for each network call; by default those of
            `reconstruct`, which costs a way down more.
        shift_start: move z_{N-1} along with the prompt (see above), two network calls; False is the paper's.
            Of no effect on EDICT's and DDIM's pairs.
        pipe_kwargs: passed to the pipeline, such as `negative_prompt`.

    Raises:
        ValueError: the pair was made with another noise schedule or shape, a mask of another shape or range,
            or a mask without the model that the pair was made with.
    """
    if pair.model_fingerprint != fingerprint(denoiser(pipe)):
        warnings.warn("The pair was made with another model: a foreign noise code.", stacklevel=2)
    if guidance_scale is None:
        guidance_scale = pair.guidance_scale
    elif guidance_scale != pair.guidance_scale and prompt == pair.prompt:
        warnings.warn(
            f"The pair was made with guidance_scale={pair.guidance_scale}, not {guidance_scale}: with its "
            "own prompt this is not a reconstruction.",
            stacklevel=2,
        )
    watch, weight = None, None
    if mask is not None:
        weight = latent_mask(mask, pair.z_T)
        watch = _blending(source or retrace(pipe, pair, **pipe_kwargs), weight)
    same = prompt == pair.prompt and guidance_scale == pair.guidance_scale
    if shift_start and pair.method == "bdia" and not same:
        pair = _shifted(pipe, pair, prompt, guidance_scale, weight, pipe_kwargs)
    return run_back(pipe, pair, prompt, guidance_scale, pipe_kwargs, watch)


def retrace(pipe: DiffusionPipeline, pair: BDIALatentPair, **pipe_kwargs: Any) -> Track:
    """The states of `reconstruct` after each of its network calls.

    Raises:
        ValueError: as `reconstruct`.
    """
    track: Track = []
    reconstruct(pipe, pair, watch=_recording(track), **pipe_kwargs)
    return track


def difference_mask(
    pipe: DiffusionPipeline,
    pair: BDIALatentPair,
    prompt: str | list[str],
    *,
    source: Track | None = None,
    threshold: float = MASK_THRESHOLD,
    **pipe_kwargs: Any,
) -> torch.Tensor:
    """Where a prompt would change the image of a pair, from the noise predictions along its trajectory.

    Args:
        pipe: the pipeline the pair was made with.
        pair: from `invert`, with the source prompt.
        prompt: the target prompt.
        source: as for `edit`.
        threshold: how many times the image's mean difference a place must have; more gives a smaller mask.
        pipe_kwargs: what `invert` was given.

    Returns:
        [B, 1, h, w] float64, 0 or 1, at the size of the latents. All 0 for the source prompt itself.

    Raises:
        ValueError: latents that are no images, a negative threshold, or as `reconstruct`.
    """
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold!r}.")
    _check_spatial(pair.z_T)
    source = source or retrace(pipe, pair, **pipe_kwargs)
    pull = torch.zeros_like(pair.z_T[:, :1], dtype=torch.float64)

    def held(step: int, states: States) -> States:
        kept = source[step]
        pull.add_((states[0] - kept[0]).abs().mean(1, keepdim=True))
        return kept

    # Guidance as in the inversion: then the prompts are all that differs.
    run_back(pipe, pair, prompt, pair.guidance_scale, pipe_kwargs, held)
    return (pull > threshold * pull.mean((1, 2, 3), keepdim=True)).double()


def latent_mask(mask: Any, latents: torch.Tensor) -> torch.Tensor:
    """A mask at the size of the latents: each cell takes the largest value of the pixels that it stands for.

    Args:
        mask: as for `edit`.
        latents: [B, C, h, w].

    Returns:
        [B or 1, 1, h, w] float64 in [0, 1], on the device of the latents.

    Raises:
        TypeError: neither tensor nor PIL images.
        ValueError: another shape or number, values outside [0, 1], or latents that are no images.
    """
    _check_spatial(latents)
    if isinstance(mask, PIL.Image.Image):
        mask = [mask]
    if not isinstance(mask, torch.Tensor):
        listed = isinstance(mask, Sequence) and len(mask) > 0
        if not listed or not all(isinstance(one, PIL.Image.Image) for one in mask):
            raise TypeError(f"mask must be a tensor or PIL images, got {type(mask).__name__}.")
        mask = torch.stack([torch.from_numpy(np.asarray(one.convert("L")) / 255) for one in mask])
    given, (h, w) = tuple(mask.shape), latents.shape[-2:]
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[0] not in (1, len(latents)):
        raise ValueError(
            f"mask must be [H, W], [B, H, W] or [B, 1, H, W] with B = {len(latents)}, got {given}."
        )
    height, width = mask.shape[-2:]
    if height % h or width % w or height // h != width // w:
        raise ValueError(
            f"mask must have the image's height and width or the latents' ({h}, {w}), got {given}."
        )
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"mask must lie in [0, 1], got [{mask.min():.3g}, {mask.max():.3g}].")
    return F.adaptive_max_pool2d(mask.to(latents.device, torch.float64), (h, w))


def _shifted(
    pipe: DiffusionPipeline,
    pair: BDIALatentPair,
    prompt: str | list[str] | None,
    guidance_scale: float,
    weight: torch.Tensor | None,
    pipe_kwargs: dict[str, Any],
) -> BDIALatentPair:
    """The pair with z_{N-1} moved along with the prompt, where `weight` is not 0."""
    shift = first_step(pipe, pair, prompt, guidance_scale, pipe_kwargs) - first_step(
        pipe, pair, pair.prompt, pair.guidance_scale, pipe_kwargs
    )
    return replace(pair, z_T_prev=pair.z_T_prev + (shift if weight is None else weight * shift))


def _recording(track: Track) -> Watch:
    def watch(_: int, states: States) -> States:
        track.append(states)
        return states

    return watch


def _blending(source: Track, weight: torch.Tensor) -> Watch:
    def watch(step: int, states: States) -> States:
        state, partner = (s + weight * (z - s) for z, s in zip(states, source[step], strict=True))
        return state, partner

    return watch


def _check_spatial(latents: torch.Tensor) -> None:
    if latents.ndim != 4:
        raise ValueError(f"A mask needs latents [B, C, H, W]; this model's are {tuple(latents.shape)}.")
