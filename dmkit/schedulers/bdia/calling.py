"""Runs an unmodified pipeline on a borrowed scheduler, from a given state.

Text-to-image pipelines are given the start state as `latents`. Unconditional ones (`DDPMPipeline`,
`DDIMPipeline`) draw their own noise and take no latents: there a one-shot forward pre-hook on the denoiser
writes the start state over that drawn tensor, in place, so that the network's first call and the scheduler's
first step both see it and no network call is spent. The result is left in the scheduler, which holds it in
double precision and unclamped.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...errors import check_finite
from .trajectory import StatePair

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_SET_HERE = ("batch_size", "latents", "num_images_per_prompt", "output_type")
"""The pipelines' arguments that are not the caller's: the start state decides them."""


def call(
    pipe: DiffusionPipeline,
    scheduler: Any,
    start: torch.Tensor,
    num_inference_steps: int,
    prompt: str | list[str] | None,
    guidance_scale: float,
    pipe_kwargs: dict[str, Any],
) -> StatePair:
    """Calls the pipeline with `scheduler` from `start` (what the scheduler's `set_start` returned).

    Returns:
        The two states at the end of the run, from the scheduler.

    Raises:
        ValueError: a prompt or guidance for an unconditional pipeline, prompts unlike the batch, another
            shape, a guidance that is not finite, or a network that returned NaN.
        TypeError: arguments that the pipeline does not take, or that are set here.
        RuntimeError: something changed the latents between the steps.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    # Stable Diffusion ignores what it does not know: a misspelt argument would be one of no effect.
    unknown = sorted(key for key in pipe_kwargs if key not in accepted or key in _SET_HERE)
    if unknown:
        raise TypeError(f"{type(pipe).__name__} cannot be given {', '.join(unknown)} here.")
    # With NaN pipelines would silently sample unguided.
    check_finite("guidance_scale", guidance_scale)
    model, size = denoiser(pipe), len(start)
    # Pipelines want as many other prompts (`negative_prompt`, `prompt_2`, …) as prompts.
    kwargs: dict[str, Any] = {"num_inference_steps": num_inference_steps} | {
        key: [value] * size if isinstance(value, str) and "prompt" in key else value
        for key, value in pipe_kwargs.items()
    }
    start = start.to(pipe.device, model.dtype)
    if "prompt" not in accepted and prompt is not None:
        raise ValueError(f"{type(pipe).__name__} is unconditional: it takes no prompt, got {prompt!r}.")
    if "prompt" in accepted and "prompt_embeds" not in pipe_kwargs:
        kwargs["prompt"] = list(prompt) if isinstance(prompt, list) else [prompt or ""] * size
        if len(kwargs["prompt"]) != size:
            raise ValueError(f"{len(kwargs['prompt'])} prompts for {size} images.")
    if "guidance_scale" in accepted:
        kwargs["guidance_scale"] = guidance_scale
    elif guidance_scale != 1:
        raise ValueError(f"{type(pipe).__name__} takes no guidance_scale, got {guidance_scale!r}.")
    with _lent(pipe, scheduler):
        if "latents" in accepted:
            pipe(latents=start, output_type="latent", **kwargs)
        else:
            expected = (size, model.config.in_channels, *_size(model))
            if tuple(start.shape) != expected:
                raise ValueError(f"The model works on {expected}, got {tuple(start.shape)}.")
            # The pipeline's own noise is overwritten: a private generator keeps the global one untouched.
            with _written_over_first_input(model, start):
                pipe(batch_size=size, generator=torch.Generator().manual_seed(0), output_type="pt", **kwargs)
    pair = scheduler.pop_pair()
    if not bool(torch.isfinite(pair.end).all()):
        raise ValueError("The network returned NaN or infinite values during the run.")
    if getattr(scheduler, "modified", False):
        raise RuntimeError(
            "Something changed the latents during the run (a callback?): it is not reversible."
        )
    return pair


@contextmanager
def _lent(pipe: DiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """The pipeline with another scheduler, its denoiser in evaluation mode; both put back, come what may."""
    own, model = pipe.scheduler, denoiser(pipe)
    training = model.training
    pipe.scheduler = scheduler
    model.eval()
    try:
        yield
    finally:
        pipe.scheduler = own
        model.train(training)


@contextmanager
def _written_over_first_input(model: torch.nn.Module, start: torch.Tensor) -> Iterator[None]:
    """Writes `start` over the sample tensor of the model's next call, in place: its caller sees it too."""

    def write(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle.remove()
        (args[0] if args else kwargs["sample"]).copy_(start)

    handle = model.register_forward_pre_hook(write, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def denoiser(pipe: DiffusionPipeline) -> Any:
    """The network: `pipe.unet`, or `pipe.transformer`."""
    model = getattr(pipe, "unet", None)
    return model if model is not None else pipe.transformer


def _size(model: Any) -> tuple[int, int]:
    size = model.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)
