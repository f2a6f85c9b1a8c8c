"""The erasing loss, which SPM (Lyu et al., CVPR 2024) and ESD (Gandikota et al., ICCV 2023) share.

    L_era = mean ‖ε_edited(x_t, c_tar) - sg[ε(x_t, c_sur) - η (ε(x_t, c_pos) - ε(x_t, c_sur))]‖²
                                                                                            (4) of SPM
    L_anc = mean ‖ε_edited(x_t, c) - sg[ε(x_t, c)]‖² over anchors c                             (6) of SPM
    L = L_era + λ L_anc                                                                         (8) of SPM

with ε the model before the edit and c_pos = c_tar unless said otherwise; models that predict v have the same
formulas in v. x_t is what the edited model itself, guided, makes of noise in a random number of steps. In
ESD's notation the surrogate is ∅ and there are no anchors.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...images import grid
from ...sampling import accepted, generate
from ...training.part import TrainedPart
from ...training.prompting import Conditions, denoiser_of, encode, image_size, predict
from ...training.randomness import derive_seed
from ...training.trainer import Step, Task
from .anchors import Anchors
from .latents import PartialDenoising
from .prompts import ErasePrompt


class NoData(Dataset):
    """The data set of a training that needs none: one empty item, so that an epoch is a step."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class Samples:
    """The pictures that show a training's progress.

    Attributes:
        prompts: prompts that should stay as they are; the targets are shown before them.
        guidance_scale: guidance.
        steps: DDIM steps.
    """

    prompts: tuple[str, ...] = ()
    guidance_scale: float = 7.5
    steps: int = 30


class ErasingTask(Task):
    """Trains a part of a pipeline's denoiser to erase concepts; subclasses say which part.

    Args:
        pipe: a text-to-image pipeline; its denoiser is edited in place.
        part: the parameters to train, by name.
        prompts: what is erased; a random one a step.
        latents: makes the noisy latents.
        anchors: draws anchors; None for no latent anchoring.
        anchor_unconditional: the unconditional prompt is one more anchor.
        samples: what the tracker's picture shows.

    Raises:
        ValueError: no prompt, or a resolution that the model cannot have.
    """

    def __init__(
        self,
        pipe: Any,
        part: Mapping[str, nn.Parameter],
        prompts: Sequence[ErasePrompt],
        *,
        latents: PartialDenoising,
        anchors: Anchors | None = None,
        anchor_unconditional: bool = True,
        samples: Samples | None = None,
    ):
        if not prompts:
            raise ValueError("There is nothing to erase: give at least one prompt.")
        self.pipe, self.prompts, self.latents = pipe, list(prompts), latents
        self.anchors, self.anchor_unconditional = anchors, anchor_unconditional
        self.samples = samples or Samples()
        self.network = denoiser_of(pipe).eval()
        self.modules = {"part": TrainedPart(self.network, part)}
        self.unit = pipe.vae_scale_factor * _downscaling(self.network)
        for prompt in self.prompts:
            prompt.size(random.Random(0), self.unit, image_size(pipe))
        pipe.set_progress_bar_config(disable=True)

    def unedited(self) -> AbstractContextManager[None]:
        """The denoiser as it was before the training, inside."""
        raise NotImplementedError

    def prepare(self, device: torch.device) -> None:
        self.pipe.to(device)
        texts = [
            (prompt.target, prompt.positive or "", prompt.neutral or "", prompt.unconditional)
            for prompt in self.prompts
        ]
        distinct = list(dict.fromkeys(text for four in texts for text in four))
        encoded = encode(self.pipe, distinct, device)
        self.conditions = {text: encoded.rows(slice(k, k + 1)) for k, text in enumerate(distinct)}
        if self.anchors is not None:
            self.anchors.prepare(self.pipe, [prompt.target for prompt in self.prompts])

    def training_step(self, batch: Any, step: Step) -> dict[str, Tensor]:
        rows = len(batch)
        # What all rows of all processes share is drawn on the host: no step waits for the device.
        choices = random.Random(step.draws.generator.initial_seed())
        prompt = choices.choice(self.prompts)
        height, width = prompt.size(choices, self.unit, image_size(self.pipe))
        told = _told(prompt, choices, height, width)
        done = choices.randint(1, self.latents.steps - 1)
        target, positive, neutral, unconditional = (
            self.conditions[text].sized(height, width, **told)
            for text in (prompt.target, prompt.positive or "", prompt.neutral or "", prompt.unconditional)
        )
        x, t = self._latents(rows, height, width, done, target, unconditional, step)

        concepts, seen_by_each = [target.repeat(rows)], [x]
        frozen = [positive.repeat(rows), neutral.repeat(rows)]
        anchored = self.anchors is not None and prompt.anchored
        if self.anchors is not None and prompt.anchored:
            each = prompt.anchors_per_latent
            anchors = self.anchors.draw(target, rows, each, step.draws).sized(height, width, **told)
            concepts.append(anchors)
            seen_by_each.append(x.repeat_interleave(each, dim=0))
            if self.anchor_unconditional:
                concepts.append(unconditional.repeat(rows))
                seen_by_each.append(x)
        # Autocast keeps its casts of weights: those of another model, or made without gradients, must go.
        torch.clear_autocast_cache()
        # One pass each, without guidance: the frozen model on positive, neutral and anchors, …
        with torch.no_grad(), self.unedited():
            inputs = torch.cat([x, x, *seen_by_each[1:]])
            before = predict(self.network, inputs, t, Conditions.cat([*frozen, *concepts[1:]])).float()
        torch.clear_autocast_cache()
        # … the edited one on target and anchors.
        after = predict(self.modules["part"], torch.cat(seen_by_each), t, Conditions.cat(concepts)).float()
        e_positive, e_neutral, anchor_before = before[:rows], before[rows : 2 * rows], before[2 * rows :]
        wanted = e_neutral - prompt.guidance_scale * (e_positive - e_neutral)
        losses = {"erase": (after[:rows] - wanted).pow(2).mean()}  # (4)
        if self.anchors is not None:
            drift = (
                (after[rows:] - anchor_before).pow(2).mean() if anchored else losses["erase"].new_zeros(())
            )
            losses["anchor"] = prompt.la_strength * drift  # (6), with the λ of (8)
        return losses

    def _latents(
        self,
        rows: int,
        height: int,
        width: int,
        done: int,
        target: Conditions,
        unconditional: Conditions,
        step: Step,
    ) -> tuple[Tensor, Tensor]:
        scale = self.pipe.vae_scale_factor
        noise = step.draws.normal((rows, self.network.config.in_channels, height // scale, width // scale))
        seed = step.draws.generator.initial_seed()
        seeds = [derive_seed(seed, step.rank * rows + row) for row in range(rows)]
        return self.latents(self.network, noise, done, target.repeat(rows), unconditional.repeat(rows), seeds)

    def settings(self) -> dict[str, Any]:
        latents = self.latents
        return {
            "erasing": type(self).__name__,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "denoising": [
                type(latents.scheduler).__name__,
                latents.steps,
                latents.guidance_scale,
                latents.legacy_timestep,
            ],
            "anchors": self.anchors and {**self.anchors.settings(), "empty": self.anchor_unconditional},
        }

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image:
        """The targets and the samples' prompts, from the same noise: above by the model before the edit,
        below as it is now.
        """
        targets = [prompt.target for prompt in self.prompts]
        shown = list(dict.fromkeys([*targets, *self.samples.prompts]))
        with self.unedited():
            before = self._pictures(shown)
        return grid(torch.cat([before, self._pictures(shown)]), columns=len(shown))

    def _pictures(self, prompts: Sequence[str]) -> Tensor:
        scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config, clip_sample=False)
        # PixArt's pipelines would otherwise round sizes to those they were trained on.
        options = accepted(self.pipe.__call__, {"use_resolution_binning": False})
        return generate(
            self.pipe,
            scheduler,
            self.samples.steps,
            range(len(prompts)),
            prompt=prompts,
            guidance_scale=self.samples.guidance_scale,
            **options,
        )


def _downscaling(network: nn.Module) -> int:
    """By how much the denoiser's coarsest level is coarser than its input."""
    config = network.config
    patch = getattr(config, "patch_size", None)
    return patch if patch else 2 ** (len(config.block_out_channels) - 1)


def _told(prompt: ErasePrompt, choices: random.Random, height: int, width: int) -> dict[str, Any]:
    """The original size and crop that the model is told: the image's own, or with `dynamic_crops` a random
    window of an original up to three times as large.
    """
    if not prompt.dynamic_crops:
        return {}
    scale = choices.uniform(1, 3)
    original = int(height * scale), int(width * scale)
    crop = choices.randint(0, original[0] - height), choices.randint(0, original[1] - width)
    return {"original": original, "crop": crop}
