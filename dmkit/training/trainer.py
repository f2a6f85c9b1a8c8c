"""The one training loop of dmkit, on Accelerate.

A method is a `Task`: what is trained, and the named losses of a batch. How losses become gradients is a
gradient rule (`dmkit.training.rules`). Everything else is here, once: devices, processes, mixed precision,
accumulation, clipping, EMA, checkpoints and exact resume, trackers, progress, and the guard against losses
that are not finite.
"""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, send_to_device, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from .._files import sweep_unfinished
from ..errors import TrainingError
from .arguments import TrainingArguments
from .checkpoint import checkpoints, find_checkpoint, load_checkpoint, save_checkpoint, save_into, step_of
from .communication import Communication
from .randomness import DataOrder, Draws, derive_seed
from .rules import FunctionRule, GradientRule, sum_losses


@dataclass(frozen=True)
class Step:
    """Where the trainer is, and the random numbers of this micro-batch.

    Attributes:
        number: optimiser steps done so far.
        phase: name of the optimiser that this micro-batch is for.
        draws: random draws that do not depend on the number of processes.
        rank: this process, of `world`; its rows follow those of the processes before it.
        world: number of processes.
    """

    number: int
    phase: str
    draws: Draws
    rank: int = 0
    world: int = 1


class Task:
    """What is trained and what its losses are; subclass it, fill `modules`, and write `training_step`.

    Attributes:
        modules: the trained modules by name, and those that follow them without a gradient. The trainer
            replaces each by its prepared (device, DDP) form, so a training step must call
            `self.modules[name]`, not a reference of its own. Each is checkpointed, and averaged if EMA is on.
            To be checkpointed it needs `save_pretrained` and `from_pretrained`, as Diffusers' models have.
    """

    modules: dict[str, nn.Module]

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by phase. Each phase has its own optimiser, stepped in this order every
        step.
        """
        trained = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        return {"main": trained}

    def parameter_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """How a phase's parameters are grouped in its optimiser: all alike by default. A group may have an
        `lr` or a `weight_decay` of its own.
        """
        return [{"params": parameters}]

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of phases that have another one than `TrainingArguments.learning_rate`."""
        return {}

    def prepare(self, device: torch.device) -> None:
        """Moves whatever is used but not trained (frozen networks, schedules) to the device."""

    def training_step(self, batch: Any, step: Step) -> Mapping[str, Tensor]:
        """The scalar losses of one micro-batch, by name; each a mean over the batch."""
        raise NotImplementedError

    def each_loss(self, batch: Any, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The losses of `training_step` one at a time, for rules that want the gradient of each.

        Where a loss needs a part of the batch only, a forward pass of its own for each makes their backward
        passes cost one batch's together.
        """
        yield from self.training_step(batch, step).items()

    def settings(self) -> dict[str, Any]:
        """What must not change between a run and its continuation, as JSON."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What the losses are of, as JSON; must not change either. Checkpoints that do not say pass."""
        return {}

    def sample(self, modules: Mapping[str, nn.Module]) -> Image.Image | None:
        """A picture for the tracker, from unwrapped modules that hold the averaged weights where EMA is
        on.
        """
        return None

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Writes the finished model into an empty folder, from unwrapped modules as in `sample`."""
        for name, module in modules.items():
            module.save_pretrained(folder / name)  # type: ignore[operator]


class Trainer:
    """Runs a task.

    Args:
        task: what is trained.
        dataset: a map-style data set; its items must be deterministic (random augmentation belongs in
            `training_step`, from `step.draws`).
        arguments: see `TrainingArguments`.
        rule: how losses become gradients; the sum by default. A function (accelerator, losses, parameters)
            that calls `accelerator.backward` once will do.
        collate_fn: items -> batch; PyTorch's default collation if not given.

    Raises:
        TrainingError: a loss or gradient that is not finite.
        FileFormatError: a checkpoint that does not fit.
    """

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        arguments: TrainingArguments,
        *,
        rule: GradientRule | Callable[..., None] = sum_losses,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ):
        self.task, self.dataset, self.arguments = task, dataset, arguments
        self.rule = rule if isinstance(rule, GradientRule) else FunctionRule(rule)
        self.output = Path(arguments.output_dir)
        trackers = None if arguments.report_to == "none" else arguments.report_to
        self.accelerator = Accelerator(
            mixed_precision=arguments.mixed_precision,
            log_with=trackers,
            project_config=ProjectConfiguration(
                project_dir=str(self.output), logging_dir=str(self.output / arguments.logging_dir)
            ),
        )
        set_seed(arguments.seed)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self.order = DataOrder(
            length=len(dataset),  # type: ignore[arg-type]
            batch_size=arguments.train_batch_size * world,
            seed=arguments.seed,
            rank=rank,
            world=world,
        )
        self.steps_per_epoch = max(
            1, math.ceil(self.order.length / (self.order.batch_size * arguments.gradient_accumulation_steps))
        )
        self.max_steps = arguments.max_train_steps or arguments.num_epochs * self.steps_per_epoch
        self._collate = collate_fn
        self._prepare()
        self.step = 0

    def _prepare(self) -> None:
        arguments, accelerator, task = self.arguments, self.accelerator, self.task
        task.prepare(accelerator.device)
        self.parameters = task.parameters()
        if accelerator.gradient_accumulation_steps > 1:
            raise ValueError("Set accumulation by --gradient_accumulation_steps, not in accelerate's config.")
        if accelerator.num_processes > 1 and len(self.parameters) > 1:
            raise ValueError("A task with several optimisers runs in one process only.")
        if accelerator.scaler is not None and len(self.parameters) > 1:
            raise ValueError("One fp16 loss scaler cannot serve several optimisers; use bf16 or no.")
        if self.rule.stateful and len(self.parameters) > 1:
            raise ValueError(f"{type(self.rule).__name__} serves one optimiser, not {len(self.parameters)}.")
        self.rule.prepare(accelerator)
        rates = task.learning_rates()
        self.optimizers = {
            phase: _optimizer(
                [*task.parameter_groups(parameters), *self.rule.parameter_groups()],
                rates.get(phase, arguments.learning_rate),
                arguments,
            )
            for phase, parameters in self.parameters.items()
        }
        self.schedules = {
            phase: get_scheduler(
                arguments.lr_scheduler,
                optimizer=optimizer,
                num_warmup_steps=arguments.lr_warmup_steps,
                num_training_steps=self.max_steps,
                num_cycles=arguments.lr_num_cycles,
                power=arguments.lr_power,
            )
            for phase, optimizer in self.optimizers.items()
        }
        for name, module in task.modules.items():
            module.train()
            # DDP refuses a module with nothing to train, such as a target that follows another one.
            if any(p.requires_grad for p in module.parameters()):
                task.modules[name] = accelerator.prepare(module)
            else:
                task.modules[name] = accelerator.prepare_model(module, evaluation_mode=True)
        self.communication = Communication(accelerator, task.modules, self.rule, arguments)
        for phase, optimizer in self.optimizers.items():
            self.optimizers[phase] = accelerator.prepare(optimizer)
        self.ema = {}
        if arguments.use_ema:
            for name, module in self.unwrapped().items():
                self.ema[name] = EMAModel(
                    module.parameters(),
                    decay=arguments.ema_max_decay,
                    use_ema_warmup=True,
                    inv_gamma=arguments.ema_inv_gamma,
                    power=arguments.ema_power,
                    foreach=True,
                )

    def unwrapped(self) -> dict[str, Any]:
        return {name: self.accelerator.unwrap_model(module) for name, module in self.task.modules.items()}

    @contextmanager
    def averaged(self) -> Iterator[dict[str, nn.Module]]:
        """The unwrapped modules in eval mode with the averaged weights where EMA is on; restored
        afterwards.
        """
        modules = self.unwrapped()
        with ExitStack() as restore:
            for name, module in modules.items():
                if name in self.ema:
                    self.ema[name].store(module.parameters())
                    self.ema[name].copy_to(module.parameters())
                    restore.callback(self.ema[name].restore, module.parameters())
                restore.callback(module.train, module.training)
                module.eval()
            yield modules

    def train(self) -> dict[str, float]:
        """Trains up to the last step and saves the model; returns the last step's losses."""
        arguments, accelerator = self.arguments, self.accelerator
        self.output.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            sweep_unfinished(self.output)
        accelerator.wait_for_everyone()
        resume = find_checkpoint(self.output, arguments.resume_from_checkpoint)
        if resume is not None:
            load_checkpoint(self, resume)
            accelerator.print(f"Resumed from {resume} at step {self.step}.")
        if later := [path.name for path in checkpoints(self.output) if step_of(path) > self.step]:
            raise ValueError(
                f"{self.output} holds {', '.join(later)} of an earlier run, beyond step {self.step} where "
                "this one starts. Go on with --resume_from_checkpoint latest, or choose another --output_dir."
            )
        if accelerator.log_with:
            accelerator.init_trackers("train", config=_tracker_config(arguments))
        batches = iter(
            DataLoader(
                self.dataset,
                batch_sampler=self.order.batches(start=self.step * arguments.gradient_accumulation_steps),  # type: ignore[arg-type]
                collate_fn=self._collate,
                num_workers=arguments.dataloader_num_workers,
            )
        )
        bar = tqdm(
            total=self.max_steps,
            initial=self.step,
            unit="step",
            disable=not accelerator.is_local_main_process,
            mininterval=1.0,
        )
        losses: dict[str, float] = {}
        started, first = time.monotonic(), self.step
        while self.step < self.max_steps:
            losses = self._optimiser_step(batches)
            self.step += 1
            images = (self.step - first) * self.order.batch_size * arguments.gradient_accumulation_steps
            rate = images / max(time.monotonic() - started, 1e-9)
            bar.update()
            bar.set_postfix({**losses, "img/s": rate}, refresh=False)
            if self.step % arguments.logging_steps == 0 or self.step == self.max_steps:
                rates = {f"lr/{phase}": s.get_last_lr()[0] for phase, s in self.schedules.items()}
                values = {**losses, **rates, "images_per_second": rate, **self.communication.figures()}
                accelerator.log(values, step=self.step)
            self._periodic()
        bar.close()
        self.save()
        for tracker in accelerator.trackers:
            tracker.finish()
        atexit.register(_leave)  # not now: a method may have several trainings
        return losses

    def _optimiser_step(self, batches: Iterator[Any]) -> dict[str, float]:
        """One step of every phase's optimiser over the same accumulated micro-batches."""
        arguments, accelerator = self.arguments, self.accelerator
        accumulation = arguments.gradient_accumulation_steps
        micro_batches = [send_to_device(next(batches), accelerator.device) for _ in range(accumulation)]
        report: dict[str, float] = {}
        each = self.rule.needs_each(self.step)
        for phase, optimizer in self.optimizers.items():
            history = []
            parameters = self.parameters[phase]
            for k, batch in enumerate(micro_batches):
                micro = self.step * accumulation + k
                rank, world = accelerator.process_index, accelerator.num_processes
                # Dropout and the like draw from the global generator: seeded, it has no state to save either.
                torch.manual_seed(derive_seed(arguments.seed, micro, 2, rank))
                draws = Draws(arguments.seed, micro, rank=rank, world=world, device=accelerator.device)
                with ExitStack() as synchronised:
                    if each or k < accumulation - 1:  # a rule that wants each gradient averages them itself
                        for module in self.task.modules.values():
                            synchronised.enter_context(accelerator.no_sync(module))
                    here = Step(self.step, phase, draws, rank, world)
                    seen: dict[str, Tensor] = {}
                    if each:
                        self.rule.collect(accelerator, self._each_loss(batch, here, seen), parameters)
                    else:
                        with accelerator.autocast():
                            losses = self.task.training_step(batch, here)
                        seen = {name: loss.detach().float() for name, loss in losses.items()}
                        scaled = {name: loss / accumulation for name, loss in losses.items()}
                        self.rule.backward_sum(accelerator, scaled, parameters)
                history.append(seen)
            seed = derive_seed(arguments.seed, self.step, 3)
            self.rule.finish(accelerator, parameters, torch.Generator().manual_seed(seed))
            norm = self._clip(phase)
            report |= self._checked(phase, history, norm)
            with self.rule.stepping(parameters):
                optimizer.step()
            if not optimizer.step_was_skipped:  # by the fp16 loss scaler
                self.schedules[phase].step()
            for other in self.optimizers.values():
                other.zero_grad(set_to_none=True)
        for name, module in self.unwrapped().items():
            if name in self.ema:
                self.ema[name].step(module.parameters())
        return report

    def _each_loss(self, batch: Any, step: Step, seen: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The task's losses one at a time, divided by the micro-batches; their values go into `seen`."""
        losses = self.task.each_loss(batch, step)
        while True:
            with self.accelerator.autocast():
                name, loss = next(losses, ("", None))
            if loss is None:
                return
            seen[name] = loss.detach().float()
            share = loss / self.arguments.gradient_accumulation_steps
            del loss
            yield name, share
            del share  # nothing here holds the graph while the next loss is computed

    def _clip(self, phase: str) -> Tensor:
        limit = self.arguments.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters[phase], limit if limit else math.inf)
        return torch.as_tensor(norm, dtype=torch.float32, device=self.accelerator.device)

    def _checked(self, phase: str, history: Sequence[Mapping[str, Tensor]], norm: Tensor) -> dict[str, float]:
        """The losses averaged over processes and micro-batches, after the guard: the step's one host sync."""
        names = list(history[0])
        table = torch.stack([torch.stack([losses[name] for name in names]) for losses in history])
        table = self.accelerator.reduce(table, reduction="mean")
        rows = torch.cat([table, norm.expand(len(history), 1)], dim=1).tolist()
        for k, row in enumerate(rows):
            values = dict(zip([*names, "gradient norm"], row, strict=True))
            if self.accelerator.scaler is not None:
                # With a loss scaler a gradient overflow is routine: the scaler skips the step.
                del values["gradient norm"]
            if bad := {name: value for name, value in values.items() if not math.isfinite(value)}:
                saved = checkpoints(self.output)
                raise TrainingError(
                    f"{', '.join(f'{name} is {value}' for name, value in bad.items())} at step {self.step}, "
                    f"batch {self.step * len(rows) + k} (phase {phase!r}). The weights were not updated with "
                    f"it. Last good checkpoint: {saved[-1] if saved else 'none yet'}."
                )
        prefix = "" if len(self.optimizers) == 1 else f"{phase}/"
        means = {f"{prefix}{name}": sum(row[j] for row in rows) / len(rows) for j, name in enumerate(names)}
        return {**means, f"{prefix}grad_norm": rows[0][-1]}

    def _periodic(self) -> None:
        arguments = self.arguments
        at_end = self.step >= self.max_steps
        if arguments.checkpointing_steps and (self.step % arguments.checkpointing_steps == 0 or at_end):
            save_checkpoint(self)
        every = arguments.save_images_epochs * self.steps_per_epoch
        if every and (self.step % every == 0 or at_end):
            self._log_sample()
        every = arguments.save_model_epochs * self.steps_per_epoch
        if every and self.step % every == 0 and not at_end:
            self.save()

    def _log_sample(self) -> None:
        if not self.accelerator.is_main_process:
            return
        with self.averaged() as modules:
            picture = self.task.sample(modules)
        if picture is None:
            return
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"step-{self.step:07d}.png")
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": pixels[None].numpy()}, step=self.step, dataformats="NHWC")

    def save(self) -> None:
        """Writes the finished model into the output folder; what makes it loadable comes last."""
        if self.accelerator.is_main_process:
            with self.averaged() as modules:
                save_into(self.output, lambda folder: self.task.save(folder, modules))
        self.accelerator.wait_for_everyone()


def _leave() -> None:
    """Takes this process out of its group, which backends that still communicate ask for."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _optimizer(
    groups: list[dict[str, Any]], learning_rate: float, arguments: TrainingArguments
) -> torch.optim.Optimizer:
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=learning_rate,
            momentum=arguments.sgd_momentum,
            weight_decay=arguments.sgd_weight_decay,
        )
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=arguments.adam_weight_decay,
        eps=arguments.adam_epsilon,
    )


def _tracker_config(arguments: TrainingArguments) -> dict[str, Any]:
    return {k: v for k, v in asdict(arguments).items() if isinstance(v, bool | int | float | str)}
