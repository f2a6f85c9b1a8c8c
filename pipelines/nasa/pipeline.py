"""Negative prompts without classifier-free guidance as a community pipeline:
`DiffusionPipeline.from_pretrained(..., custom_pipeline=this folder)`.

NASA (Nguyen et al., ICCV 2025, arXiv 2412.02687) and NAG (Chen et al., NeurIPS 2025, arXiv 2505.21179),
through Diffusers' unmodified `StableDiffusionPipeline`.
"""

from __future__ import annotations

from typing import Any

import torch

from dmkit import hosting
from dmkit.guidance import NASA


class NASAPipeline(hosting.HostPipeline):
    """Text to image in one or a few steps, away from a negative prompt.

    The components are those of a Stable Diffusion model.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        nasa_scale: float | list[float] = 0.2,
        mode: str = "nasa",
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        tau: float = 2.5,
        blend: float = 0.375,
        **arguments: Any,
    ) -> Any:
        """
        Args:
            prompt: a text, or several.
            negative_prompt: what the images shall not show; one for all prompts, or one for each.
            nasa_scale: how far away from it: α of NASA (0.05 to 1), φ of NAG (1 to 6).
            mode: `nasa` or `nag`.
            num_inference_steps: the scheduler's.
            guidance_scale: 1 for none; above 1 in addition, away from the empty prompt.
            tau: NAG's bound, at least 1.
            blend: NAG's part of the steered answer, in (0, 1].
            arguments: others of `StableDiffusionPipeline` (`generator`, `latents`, `output_type`, …).

        Returns:
            What `StableDiffusionPipeline` returns.

        Raises:
            ValueError: as `dmkit.guidance.NASA`.
        """
        allowed = guidance_scale > 1
        nasa = NASA(self.inner(), nasa_scale, mode=mode, tau=tau, blend=blend, allow_cfg=allowed)
        return nasa(
            prompt,
            negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **arguments,
        )
