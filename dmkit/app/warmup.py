"""What the runs of the demo import, which takes seconds: while the visitor reads, and in one thread only."""

from __future__ import annotations

import importlib
from threading import Lock

NAMES = ("cli._work", "evaluation", "guidance", "schedulers.bdia.inversion", "adapters.spm.pipeline")
_importing = Lock()


def warm_up() -> None:
    """Imports what a run will need; models wait to be asked for.

    Every run calls this first, and waits for the one that came before. The packages below import in circles:
    two threads that begin at different places of one get modules that are half made, and fail.
    """
    with _importing:
        for name in NAMES:
            importlib.import_module(f"dmkit.{name}")
        from diffusers import DDPMPipeline, StableDiffusionPipeline  # noqa: F401
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
