"""Images from a model, a scheduler and seeds.

`sample_batch` is the plain sampling loop for unconditional denoisers: any scheduler, any `UNet2DModel`.
Diffusers' `DDPMPipeline` neither scales the model's input nor copes with schedulers whose `step` takes no
`generator`; this loop does both, and gives each image a generator of its own, so that an image depends on its
seed and not on the batch that it was made in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import Module

from .errors import check_finite


def accepted(step: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a scheduler's `step` has a parameter for."""
    known = inspect.signature(step).parameters
    return {name: value for name, value in arguments.items() if name in known}


@torch.no_grad()
def sample_batch(
    unet: Module,
    scheduler: Any,
    num_inference_steps: int,
    seeds: Sequence[int],
    *,
    on_step: Callable[[int, int], None] | None = None,
    **step_arguments: Any,
) -> Tensor:
    """Samples one image a seed.

    Args:
        unet: an unconditional denoiser with `config.in_channels` and `config.sample_size`.
        scheduler: any Diffusers scheduler; its `set_timesteps` is called here.
        num_inference_steps: steps of the scheduler.
        seeds: one seed an image.
        on_step: called after each step with (steps done, steps in all).
        step_arguments: passed to the scheduler's `step` where it knows them (`eta`).

    Returns:
        Images (len(seeds), C, H, W) in the model's range, not clipped, in the model's dtype.
    """
    parameter = next(unet.parameters())
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (len(generators), unet.config.in_channels, height, width)
    scheduler.set_timesteps(num_inference_steps, device=parameter.device)
    sample = randn_tensor(shape, generator=generators, device=parameter.device, dtype=parameter.dtype)
    # Flow-matching schedulers start from plain noise and do not scale the input: they have neither name.
    sample = sample * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda x, _: x)
    known = accepted(scheduler.step, {"generator": generators, **step_arguments})
    timesteps = scheduler.timesteps
    for i, t in enumerate(timesteps):
        output = unet(scale(sample, t), t).sample
        sample = scheduler.step(output, t, sample, **known).prev_sample
        if on_step is not None:
            on_step(i + 1, len(timesteps))
    return sample


def generate(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    seeds: Sequence[int],
    *,
    prompt: str | Sequence[str] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    call: Callable[..., Any] | None = None,
    **arguments: Any,
) -> Tensor:
    """One image a seed from a pipeline with another scheduler, which is put back afterwards.

    Args:
        pipe: an unconditional pipeline with a `unet`, or a text-to-image pipeline.
        scheduler: the scheduler to sample with.
        num_inference_steps: its steps.
        seeds: one seed an image.
        prompt: for text-to-image pipelines, the text that all images share, or one for each seed.
        on_step: called after each step with (steps done, steps in all).
        call: for text-to-image pipelines, what is called in the pipeline's place with the pipeline's own
            arguments: something that steers it, such as `dmkit.guidance.NASA` or `dmkit.adapters.SPM`.
        arguments: for text-to-image pipelines, passed to the pipeline (`guidance_scale`, `negative_prompt`,
            …).

    Returns:
        Images (len(seeds), C, H, W) in [-1, 1], float32, on the CPU.

    Raises:
        ValueError: a prompt for a model that takes none, none for one that needs it, or a list of prompts
            that are not one for each seed, or a guidance that is not finite.
    """
    takes_text = hasattr(pipe, "tokenizer")
    if takes_text != (prompt is not None):
        wants = "needs a prompt" if takes_text else "is unconditional and takes no prompt"
        raise ValueError(f"{type(pipe).__name__} {wants}.")
    if not takes_text:
        if arguments:
            raise ValueError(f"{type(pipe).__name__} is unconditional: it takes no {', '.join(arguments)}.")
        images = sample_batch(pipe.unet, scheduler, num_inference_steps, seeds, on_step=on_step)
        return images.float().clamp(-1, 1).cpu()
    prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt or [])
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds need as many prompts, not {len(prompts)}.")
    if arguments.get("guidance_scale") is not None:
        check_finite("guidance_scale", arguments["guidance_scale"])
    # Pipelines want as many negative prompts as prompts.
    arguments = {k: [v] * len(seeds) if isinstance(v, str) else v for k, v in arguments.items()}
    original, pipe.scheduler = pipe.scheduler, scheduler

    def report(_pipe: Any, done: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(done + 1, len(scheduler.timesteps))
        return state

    try:
        images = (call or pipe)(
            prompts,
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            callback_on_step_end=report,
            **arguments,
        ).images
    finally:
        pipe.scheduler = original
    return (images.float() * 2 - 1).cpu()


def generate_batches(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    num_images: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    prompt: str | Sequence[str] | None = None,
    **arguments: Any,
) -> Iterator[Tensor]:
    """Batches of images with seeds `seed`, `seed + 1`, …; see `generate` for the other arguments.

    Raises:
        ValueError: as `generate`; a list of prompts must hold one for each image.
    """
    if not (prompt is None or isinstance(prompt, str) or len(prompt) == num_images):
        raise ValueError(f"{num_images} images need as many prompts, not {len(prompt)}.")
    for start in range(0, num_images, batch_size):
        here = slice(start, min(start + batch_size, num_images))
        seeds = range(seed + here.start, seed + here.stop)
        text = prompt if prompt is None or isinstance(prompt, str) else prompt[here]
        yield generate(pipe, scheduler, num_inference_steps, seeds, prompt=text, **arguments)
