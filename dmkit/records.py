"""What is written beside a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON has it, without Diffusers' bookkeeping."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in kept.items()}


def provenance(**parameters: Any) -> dict[str, Any]:
    """What is written beside a result: the parameters that were given and the versions that made it."""
    import diffusers
    import torch

    versions = {
        "dmkit": version("dmkit"),
        "diffusers": diffusers.__version__,
        "torch": str(torch.__version__),
    }
    given = {
        # JSON has no infinity, which is the PSNR of equal images.
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in parameters.items()
        if value is not None
    }
    return {**given, "versions": versions}
