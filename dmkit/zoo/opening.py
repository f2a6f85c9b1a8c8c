"""A model as a program needs it: checked, quiet, on its device."""

from __future__ import annotations

import warnings
from typing import Any


def open_pipeline(model: str, device: str | None) -> Any:
    """A pipeline from the zoo, a folder or the hub, on its device and without progress bars of its own.

    Raises:
        ValueError: an unknown model (the message names the near one), a pipeline that is neither an
            unconditional one nor text-to-image, or a device that is not there.
        FileFormatError: a folder that is not a whole pipeline, or lacks weights.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..errors import FileFormatError
    from . import load

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it remarks on image processors that nothing here uses
    pipe: Any = load(model)
    parts = set(pipe.components)
    if parts != {"unet", "scheduler"} and not {"tokenizer", "scheduler"} <= parts:
        raise ValueError(
            f"{type(pipe).__name__} is neither text-to-image nor an unconditional pipeline of a unet and a "
            f"scheduler; it has {', '.join(sorted(parts))}."
        )
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    if any(parameter.is_meta for network in networks for parameter in network.parameters()):
        raise FileFormatError(f"The pipeline {model} lacks weights that its configuration calls for.")
    pipe.set_progress_bar_config(disable=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def guidance_for(model: str, guidance_scale: float | None) -> float | None:
    """The guidance to sample a model with: for a distilled model of one step 1, unless another is wanted.

    Args:
        model: as for `open_pipeline`.
        guidance_scale: what the user asked for; None for the pipeline's own.
    """
    from . import folder_of, is_one_step

    if not is_one_step(folder_of(model)):
        return guidance_scale
    if guidance_scale is not None and guidance_scale > 1:
        warnings.warn(
            f"{model} was distilled to be sampled without guidance; guidance {guidance_scale:g} spoils its "
            "images.",
            stacklevel=2,
        )
    return 1.0 if guidance_scale is None else guidance_scale
