"""The noise process of a variance-preserving teacher, and the scheduler that samples its one-step student.

    x_t = α_t x_0 + σ_t ε,   α_t² = ᾱ_t,   α_t² + σ_t² = 1                                          (1)

A network says ε, v = α_t ε - σ_t x_0 or x_0. At the same x_t its prediction p is affine in ε,

    x_0 = (x_t - σ_t ε)/α_t = α_t x_t - σ_t v                                                       (2)
    dε = c_t dp,   c_t = 1 | α_t | -α_t/σ_t   for ε | v | x_0                                       (3)

so that differences of two predictions, and guidance, can be taken in p and turned into ε at the end: no
digits are lost in x_t, which cancels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ..errors import unknown_name
from ..training.denoising import PREDICTION_TYPES

# Above this a student's error in ε is an image of its own: PixArt's betas give 157 at the last timestep.
GAIN = 50

logger = logging.getLogger(__name__)


class Process:
    """(1) to (3) at integer timesteps, in float32 from float64.

    Args:
        scheduler: a scheduler of Diffusers with `alphas_cumprod`.

    Attributes:
        alphas, sigmas: α_t and σ_t, float32 (T,).
        prediction_type: `epsilon`, `v_prediction` or `sample`.

    Raises:
        TypeError: a scheduler of another process (flow matching, EDM).
        ValueError: an unknown prediction type.
    """

    def __init__(self, scheduler: Any):
        cumulated = getattr(scheduler, "alphas_cumprod", None)
        if cumulated is None:
            raise TypeError(
                f"{type(scheduler).__name__} has no `alphas_cumprod`: one-step distillation is for "
                "variance-preserving models, those that DDIMScheduler samples."
            )
        kind = scheduler.config.prediction_type
        if kind not in PREDICTION_TYPES:
            raise unknown_name("prediction type", kind, PREDICTION_TYPES)
        self.prediction_type: str = kind
        cumulated = cumulated.double()
        self.alphas, self.sigmas = cumulated.sqrt().float(), (1 - cumulated).sqrt().float()

    def __len__(self) -> int:
        return len(self.alphas)

    def to(self, device: torch.device | str) -> Process:
        self.alphas, self.sigmas = self.alphas.to(device), self.sigmas.to(device)
        return self

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t for timesteps (B,) or (), to multiply with `like` (B, …)."""
        shape = (-1, *[1] * (like.ndim - 1))
        return self.alphas[t].view(shape), self.sigmas[t].view(shape)

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.at(t, x0)
        return alpha * x0 + sigma * noise  # (1)

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 of a prediction."""
        alpha, sigma = self.at(t, x_t)
        of_type: dict[str, Callable[[], Tensor]] = {  # (2)
            "epsilon": lambda: (x_t - sigma * prediction) / alpha,
            "v_prediction": lambda: alpha * x_t - sigma * prediction,
            "sample": lambda: prediction,
        }
        return of_type[self.prediction_type]()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say."""
        alpha, sigma = self.at(t, x0)
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[
            self.prediction_type
        ]

    def epsilon_per_prediction(self, t: Tensor, like: Tensor) -> Tensor:
        """c_t of (3)."""
        alpha, sigma = self.at(t, like)
        return {"epsilon": torch.ones_like(alpha), "v_prediction": alpha, "sample": -alpha / sigma}[
            self.prediction_type
        ]


def one_step_scheduler(scheduler: Any, timestep: int | None = None) -> DDIMScheduler:
    """The scheduler with which a pipeline makes x_0 of pure noise by (2), in its one step.

    With Diffusers' usual settings (`leading` spacing, `set_alpha_to_one=False`) a DDIM sampler of one step
    would start at timestep 1, and end a little short of x_0.

    Args:
        scheduler: the teacher's; its betas and prediction type are kept.
        timestep: where the student is evaluated; the last one, T - 1, if None. Another one is right for one
            step only; at the last one, several steps are DDIM's.

    Raises:
        TypeError, ValueError: as `Process`.
        ValueError: a timestep that the teacher does not have, or an ε model where nothing of x_0 is left.
    """
    process = Process(scheduler)
    last = len(process) - 1
    timestep = last if timestep is None else timestep
    if not 0 <= timestep <= last:
        raise ValueError(f"The student's timestep is {timestep}; it must be between 0 and {last}.")
    if process.prediction_type == "epsilon":
        gain = (1 / process.alphas[timestep].double()).item()
        if gain == float("inf"):
            raise ValueError(
                f"At timestep {timestep} nothing of x_0 is left (zero terminal SNR), so that noise says "
                "nothing of it: choose a smaller --student_timestep."
            )
        if gain > GAIN:
            logger.warning(
                "At timestep %d an error of the student is multiplied by %.0f; a smaller --student_timestep "
                "is safer (PixArt's one-step models run at 400).",
                timestep,
                gain,
            )
    # One step of `leading` spacing is at 0 + steps_offset.
    spacing = (
        {"timestep_spacing": "trailing"}
        if timestep == last
        else {"timestep_spacing": "leading", "steps_offset": timestep}
    )
    return DDIMScheduler.from_config(
        scheduler.config, clip_sample=False, thresholding=False, set_alpha_to_one=True, **spacing
    )
