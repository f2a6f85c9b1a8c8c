"""One-step distillation as a task of two phases: the student's step, then the learning teacher's.

    student     z ~ N(0, I),  x̂_0 = f_θ(z, y), one call at the student's timestep
                the gradient (2) of `dmkit.distillation.vsd`, and perhaps the CLIP loss
    fake        the same x̂_0, detached, and loss (3)

NASA-T (Nguyen et al., ICCV 2025): the student's cross-attention is steered away from a random negative prompt
y⁻ (`dmkit.attention.steering`, α anew each time) and the frozen teacher is guided away from y⁻ in place of ∅.
The learning teacher keeps ∅: with y⁻ the paper's ablation is worse.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..attention import SteeredLayers, Steering, join_tokens
from ..images import grid
from ..sampling import accepted, generate
from ..training.prompting import Conditions, denoiser_of, image_size, predict
from ..training.trainer import Step, Task
from .clip import CLIPLoss
from .process import Process, one_step_scheduler
from .prompts import conditions_of, encode_all
from .teachers import LoRA, Teachers
from .vsd import Kappa, fake_loss, guided, vsd_gradient, vsd_loss

# What the trainer's data has beside the prompts, where there is a CLIP loss.
CLIP_TEXTS = "clip_texts"


@dataclass(frozen=True)
class Distillation:
    """What is distilled, and how.

    Args:
        kappa: the guidance of both teachers.
        t_range: the timesteps of the student's loss, as parts of all of them, in (0, 1]; the upper end is
            left out.
        caption_dropout: how often the learning teacher is shown a whole batch without its prompts.
        student_timestep: where the student is evaluated; the last timestep if None.
        nasa_scale: α of NASA-T, uniform between the two; None for no NASA-T.
        lora: the learning teacher's.

    Raises:
        ValueError: values out of range.
    """

    kappa: Kappa
    t_range: tuple[float, float] = (0.02, 0.981)
    caption_dropout: float = 0.1
    student_timestep: int | None = None
    nasa_scale: tuple[float, float] | None = None
    lora: LoRA = field(default_factory=LoRA)

    def __post_init__(self) -> None:
        low, high = self.t_range
        if not 0 < low < high <= 1:
            raise ValueError(f"t_range is from {low} to {high}; it must lie in (0, 1], smaller end first.")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout is {self.caption_dropout}; it must be in [0, 1).")
        if self.nasa_scale is not None:
            low, high = self.nasa_scale
            if not (0 <= low <= high < float("inf")):
                raise ValueError(
                    f"nasa_scale is from {low} to {high}; it must be a range from at least 0, smaller first."
                )

    def timesteps(self, count: int) -> tuple[int, int]:
        """The first timestep of the student's loss, and the one after the last, of `count`.

        Raises:
            ValueError: none of them is in the range.
        """
        low, high = (round(part * count) for part in self.t_range)
        if low >= high:
            raise ValueError(f"No timestep of {count} lies in t_range, {self.t_range}.")
        return low, high


@dataclass(frozen=True)
class _Drawn:
    """All random numbers of a micro-batch of B, the same in both phases."""

    z: Tensor  # the student's noise (B, C, H, W)
    kappa: Tensor  # (1,) or (B,)
    t: Tensor  # of the student's loss (B,)
    noise: Tensor
    fake_t: Tensor  # of the learning teacher's loss (B,)
    fake_noise: Tensor
    dropped: Tensor  # whether the learning teacher sees ∅, bool (1,)
    steered: Tensor  # α (1,)
    away: Tensor  # negative prompts (B,)


class OneStepTask(Task):
    """Distils a text-to-image pipeline into one step, by prompts alone.

    The losses are `student/vsd` (half g's mean square: how far the teachers are apart), `student/clip` (its
    weight included) where there is one, and `fake/denoise`. Batches are rows of
    `dmkit.distillation.prompts.encode_prompts`, with `clip_texts` (E,) for a CLIP loss.

    Args:
        pipe: the teacher's pipeline. It becomes the student's: its denoiser is replaced by the student and
            its scheduler by `one_step_scheduler`'s.
        config: what is distilled, and how.
        student: a denoiser to start from; a copy of the teacher if None.
        clip: the CLIP loss, if any.
        negatives: conditions of the negative prompts that NASA-T draws from.
        validation_prompts: prompts of the tracker's picture.

    Raises:
        TypeError: a pipeline whose text or noise process is of another kind.
        ValueError: NASA-T without negative prompts, or the other way round; a denoiser that NASA cannot steer
            or that recomputes activations; a student that is not like the teacher; as `Teachers`.
    """

    def __init__(
        self,
        pipe: Any,
        config: Distillation,
        *,
        student: nn.Module | None = None,
        clip: CLIPLoss | None = None,
        negatives: Conditions | None = None,
        validation_prompts: Sequence[str] = (),
    ):
        network = denoiser_of(pipe)
        self.process = Process(pipe.scheduler)
        scheduler = one_step_scheduler(pipe.scheduler, config.student_timestep)
        self.t_range = config.timesteps(len(self.process))
        if (config.nasa_scale is None) != (negatives is None):
            raise ValueError("NASA-T takes both: --nasa_scale, and negative prompts to steer away from.")
        student = copy.deepcopy(network) if student is None else student
        check_alike(network, student, "student", "teacher")
        student.requires_grad_(True)
        self.steering = Steering(scale=0.0)
        self._layers: SteeredLayers | None = None
        if negatives is not None:
            if getattr(student, "is_gradient_checkpointing", False):
                raise ValueError("NASA-T takes no gradient checkpointing: it would recompute unsteered.")
            self._layers = SteeredLayers(student, self.steering)
        height, width = (side // pipe.vae_scale_factor for side in image_size(pipe))
        self.shape = (network.config.in_channels, height, width)
        self.empty = conditions_of(encode_all(pipe, [""])).map(lambda value: value.float())
        self.negatives = negatives
        self.teachers = Teachers(network, config.lora)
        self.modules = {"student": student, "fake": self.teachers.fake}
        name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        pipe.register_modules(**{name: student, "scheduler": scheduler})
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.config, self.clip = pipe, config, clip
        self.validation_prompts = list(validation_prompts)
        scheduler.set_timesteps(1)
        self.timestep = scheduler.timesteps  # (1,)
        self._made: dict[int, Tensor] = {}

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {
            "student": [p for p in self.modules["student"].parameters() if p.requires_grad],
            "fake": list(self.modules["fake"].parameters()),
        }

    def learning_rates(self) -> dict[str, float]:
        return {"fake": self.config.lora.learning_rate}

    def prepare(self, device: torch.device) -> None:
        self.pipe.to(device)
        self.teachers.network.to(device)
        self.process.to(device)
        self.timestep = self.timestep.to(device)
        self.empty = self.empty.to(device)
        if self.negatives is not None:
            self.negatives = self.negatives.to(device)
        if self.clip is not None:
            self.clip.to(device)

    def training_step(self, batch: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        conditions = conditions_of(batch)
        drawn = self._draw(len(conditions), step)
        # The learning teacher looks at the very images that the student was judged by.
        micro_batch = step.draws.generator.initial_seed()
        if step.phase == "fake":
            return {"denoise": self._fake_loss(self._made.pop(micro_batch), conditions, drawn)}
        x0 = self.images(drawn.z, conditions, drawn)
        self._made[micro_batch] = x0.detach()
        losses = {"vsd": vsd_loss(x0, self._gradient(x0.detach(), conditions, drawn))}
        if self.clip is not None:
            losses["clip"] = self.clip(x0, batch[CLIP_TEXTS], step.number)
        return losses

    def _draw(self, rows: int, step: Step) -> _Drawn:
        draws, (first, end) = step.draws, self.t_range
        return _Drawn(
            z=draws.normal((rows, *self.shape)),
            kappa=self.config.kappa.draw(draws, rows),
            t=first + draws.integers(end - first, (rows,)),
            noise=draws.normal((rows, *self.shape)),
            fake_t=draws.integers(len(self.process), (rows,)),
            fake_noise=draws.normal((rows, *self.shape)),
            dropped=draws.uniform((1,)) < self.config.caption_dropout,
            steered=self._nasa_scale(draws.uniform((1,))),
            away=draws.integers(1 if self.negatives is None else len(self.negatives), (rows,)),
        )

    def _nasa_scale(self, uniform: Tensor) -> Tensor:
        low, high = self.config.nasa_scale or (0.0, 0.0)
        return low + (high - low) * uniform

    def images(self, z: Tensor, conditions: Conditions, drawn: _Drawn | None = None) -> Tensor:
        """x̂_0 (B, C, H, W) float32 of noise and prompts; steered by NASA-T where `drawn` says how."""
        steered: AbstractContextManager[Any] = nullcontext()
        if drawn is not None and self._layers is not None and self.negatives is not None:
            conditions = self._steer(conditions, drawn)
            steered = self._layers.active()
        with steered:
            prediction = predict(self.modules["student"], z, self.timestep, conditions)
        return self.process.clean(prediction.float(), z, self.timestep)

    def _steer(self, conditions: Conditions, drawn: _Drawn) -> Conditions:
        """The prompts with their negative prompts' tokens behind."""
        away = self._negatives(drawn)
        self.steering.scale = drawn.steered.expand(len(conditions))
        self.steering.num_prompt_tokens, self.steering.num_negative_tokens = (
            each.arguments["encoder_hidden_states"].shape[1] for each in (conditions, away)
        )
        joined = {
            name: join_tokens(value, away.arguments[name]) for name, value in conditions.arguments.items()
        }
        return Conditions(joined, conditions.added)

    def _negatives(self, drawn: _Drawn) -> Conditions:
        assert self.negatives is not None
        return self.negatives.rows(drawn.away).map(lambda value: value.float())

    @torch.no_grad()
    def _gradient(self, x0: Tensor, conditions: Conditions, drawn: _Drawn) -> Tensor:
        x_t, rows = self.process.noisy(x0, drawn.noise, drawn.t), len(x0)
        if self.config.kappa.unguided:
            real, fake = self.teachers.both(x_t, drawn.t, conditions, conditions)
        else:
            empty = self.empty.repeat(rows)
            away = empty if self.negatives is None else self._negatives(drawn)
            both = (Conditions.cat([conditions, c]) for c in (away, empty))
            said = self.teachers.both(torch.cat([x_t, x_t]), torch.cat([drawn.t, drawn.t]), *both)
            real, fake = (guided(p[:rows], p[rows:], drawn.kappa) for p in said)
        return vsd_gradient(self.process, real, fake, drawn.t)

    def _fake_loss(self, x0: Tensor, conditions: Conditions, drawn: _Drawn) -> Tensor:
        rows = len(x0)
        x_t = self.process.noisy(x0, drawn.fake_noise, drawn.fake_t)
        # By index, not by `if`: the host need not know.
        own = torch.arange(rows, device=x0.device)
        shown = Conditions.cat([conditions, self.empty]).rows(torch.where(drawn.dropped, rows, own))
        prediction = predict(self.modules["fake"], x_t, drawn.fake_t, shown)
        return fake_loss(self.process, prediction, x0, drawn.fake_noise, drawn.fake_t)

    def settings(self) -> dict[str, Any]:
        # As JSON has it, where tuples are lists.
        config = json.loads(json.dumps(asdict(self.config)))
        return {"distillation": config, **(self.clip.settings() if self.clip else {})}

    @torch.no_grad()
    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image | None:
        return grid(self.pictures(self.validation_prompts)) if self.validation_prompts else None

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> Tensor:
        """One-step images (B, C, H, W) in [-1, 1], as the saved pipeline makes them."""
        # PixArt's pipelines would otherwise round sizes to those they were trained on.
        options = accepted(self.pipe.__call__, {"use_resolution_binning": False})
        seeds = range(len(prompts)) if seeds is None else seeds
        return generate(
            self.pipe, self.pipe.scheduler, 1, seeds, prompt=prompts, guidance_scale=1.0, **options
        )

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """The student's whole pipeline."""
        self.pipe.save_pretrained(folder)


def check_alike(one: nn.Module, other: nn.Module, this: str, that: str) -> None:
    """
    Raises:
        ValueError: two networks of other classes, layers or shapes.
    """
    kinds = type(one).__name__, type(other).__name__
    shapes = [{name: tuple(p.shape) for name, p in network.state_dict().items()} for network in (one, other)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        names = sorted(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        where = f", first at {names[0]}" if names else ""
        raise ValueError(f"The {this} ({kinds[1]}) is not like the {that} ({kinds[0]}){where}.")
