"""What the community pipelines have in common: their components and their pictures."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline


class HostPipeline(DiffusionPipeline):
    """Holds the components of a Stable Diffusion model, or `unet` and `scheduler` alone.

    A module that is loaded as `custom_pipeline` may hold one pipeline class only: import this module, not the
    class.
    """

    _optional_components = [  # noqa: RUF012  (Diffusers reads a list)
        "vae",
        "text_encoder",
        "tokenizer",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    ]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # Diffusers runs every local `pipeline.py` in one and the same module object, and then refuses to
        # choose between what two of them left there: the newest one stays.
        names = vars(sys.modules[cls.__module__])
        for name in [name for name, found in names.items() if _is_host(found)]:
            del names[name]

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = False,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)

    def inner(self) -> DiffusionPipeline:
        """Diffusers' own pipeline over the same components, with this one's progress bar settings."""
        if self.vae is None:
            pipe = DDPMPipeline(unet=self.unet, scheduler=self.scheduler)
        else:
            pipe = StableDiffusionPipeline(**self.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipe

    def pictures(self, image: torch.Tensor, output_type: str) -> Any:
        """[B, C, H, W] in [-1, 1] -> PIL images for `"pil"`, or [B, C, H, W] in [0, 1] for `"pt"`.

        Raises:
            ValueError: another output type.
        """
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type must be 'pil' or 'pt', got {output_type!r}.")
        pixels = (image.float() / 2 + 0.5).clamp(0, 1)
        return pixels if output_type == "pt" else self.numpy_to_pil(pixels.permute(0, 2, 3, 1).cpu().numpy())


def _is_host(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, HostPipeline)
