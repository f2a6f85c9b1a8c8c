"""The latents that erasing is trained on: noise that the model has partly denoised towards the target.

The released code of SPM asks for the predictions at a timestep that the latent is not at (with 30 DDIM steps,
after k of them: 999 - int(1000 k / 30) in place of 957 - 33 k). Here it is the scheduler's own timestep of
that latent; `legacy_timestep` has the released one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, LMSDiscreteScheduler
from torch import Tensor

from ...errors import unknown_name
from ...sampling import accepted
from ...training.prompting import Conditions, predict

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "lms": LMSDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
}


class PartialDenoising:
    """Denoises from noise, with guidance, and stops on the way.

    Args:
        scheduler: the pipeline's scheduler; its noise schedule is taken over.
        kind: `ddim`, `ddpm`, `lms` or `euler_a`.
        steps: steps of a whole denoising, at least 2.
        guidance_scale: guidance of these steps; at 1 there is no unconditional half.
        legacy_timestep: report the released code's timestep (`ddim` only).

    Raises:
        ValueError: an unknown kind, fewer than 2 steps, a scheduler without a schedule of betas, or
            `legacy_timestep` with another kind than `ddim`.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        kind: str = "ddim",
        steps: int = 30,
        guidance_scale: float = 3.0,
        legacy_timestep: bool = False,
    ):
        if kind not in SCHEDULERS:
            raise unknown_name("noise scheduler", kind, SCHEDULERS)
        if steps < 2:
            raise ValueError(f"max_denoising_steps is {steps}; it must be at least 2.")
        if "beta_schedule" not in scheduler.config:
            raise ValueError(
                f"{type(scheduler).__name__} has no schedule of betas; flow matching is not supported."
            )
        if legacy_timestep and kind != "ddim":
            raise ValueError(f"legacy_timestep is of the released code's DDIM; it does not go with {kind!r}.")
        own = {"clip_sample": False} if kind in ("ddim", "ddpm") else {}
        self.scheduler = SCHEDULERS[kind].from_config(scheduler.config, **own)
        self.steps, self.guidance_scale, self.legacy_timestep = steps, guidance_scale, legacy_timestep

    def timestep(self, done: int) -> Tensor:
        """The timestep of a latent after `done` steps, which must be below `steps`."""
        if self.legacy_timestep:
            total = self.scheduler.config.num_train_timesteps
            return torch.tensor(total - 1 - int(done * total / self.steps))
        return self.scheduler.timesteps[done]

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Callable[..., Any],
        noise: Tensor,
        done: int,
        target: Conditions,
        unconditional: Conditions,
        seeds: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """The first `done` steps from `noise`.

        Args:
            denoiser: the network.
            noise: standard normal (B, C, H, W).
            done: steps to take, in [1, steps).
            target: what is denoised towards, B conditions.
            unconditional: guidance's other half, B conditions.
            seeds: one a row, for schedulers that add noise of their own.

        Returns:
            x_t as the network takes it (scaled), and t of shape ().
        """
        scheduler = self.scheduler
        # Times stay on the host: reading the schedule at a time on the device would wait for the device.
        scheduler.set_timesteps(self.steps)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = accepted(scheduler.step, {"generator": generators})
        guided = self.guidance_scale != 1
        conditions = Conditions.cat([unconditional, target]) if guided else target
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps[:done]:
            seen = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
            prediction = predict(denoiser, seen, t, conditions)
            if guided:
                without, with_text = prediction.chunk(2)
                prediction = without + self.guidance_scale * (with_text - without)
            x = scheduler.step(prediction, t, x, **options).prev_sample
        own = scheduler.timesteps[done]
        return scheduler.scale_model_input(x, own), self.timestep(done)
