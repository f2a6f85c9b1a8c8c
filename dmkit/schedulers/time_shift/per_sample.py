"""Handing every image of a batch its own timestep: the denoiser's side of `time_shift_scope="sample"`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def _replace(scheduler: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Exchanges the timestep that the pipeline passes for the labels, tiled to the model's batch."""
    pending = scheduler.pending_timesteps()
    if pending is None:
        return None
    labels, scheduled = pending
    in_kwargs = "timestep" in kwargs
    passed = torch.as_tensor(kwargs["timestep"] if in_kwargs else args[1])
    sample = next(x for x in (*args, kwargs.get("sample"), kwargs.get("hidden_states")) if x is not None)
    if len(sample) % len(labels):
        raise ValueError(
            f"The model's batch of {len(sample)} is no multiple of the run's {len(labels)} images."
        )
    # Some pipelines pass the timestep divided by 1000: the labels get what the scheduled timestep got.
    scale = passed.flatten()[0].item() / scheduled if scheduled else 1.0
    # Classifier-free guidance stacks whole batches, so labels repeat, not interleave.
    tiled = (labels * scale).repeat(len(sample) // len(labels)).to(sample.device, passed.dtype)
    if in_kwargs:
        return args, {**kwargs, "timestep": tiled}
    return (args[0], tiled, *args[2:]), kwargs


@contextmanager
def per_sample_timesteps(model: nn.Module, scheduler: Any) -> Iterator[None]:
    """Inside the block, `model` receives the labels of `scheduler` (scope "sample") instead of the one
    timestep that a pipeline passes to all images.

    with per_sample_timesteps(pipe.unet, pipe.scheduler):
        images = pipe(batch_size=8, num_inference_steps=10).images

    Args:
        model: the denoiser (`pipe.unet` or `pipe.transformer`).
        scheduler: the Time-Shift scheduler that the pipeline runs with.

    Raises:
        ValueError: a scheduler whose scope is not "sample".
    """
    if getattr(scheduler.config, "time_shift_scope", None) != "sample":
        raise ValueError("per_sample_timesteps is for a Time-Shift scheduler with time_shift_scope='sample'.")
    hook = model.register_forward_pre_hook(functools.partial(_replace, scheduler), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
