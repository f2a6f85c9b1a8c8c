"""Arguments of one-step distillation, and what they start; for scripts and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from diffusers import AutoencoderTiny
from torch.utils.data import Dataset

from .. import data, zoo
from ..errors import FileFormatError, unknown_name
from ..training.arguments import TrainingArguments, hint, parse_arguments
from ..training.caching import CachedTensors
from ..training.prompting import denoiser_of
from ..training.trainer import Trainer
from .clip import CLIPLoss, CLIPScorer
from .prompts import conditions_of, encode_prompts, read_prompts
from .task import CLIP_TEXTS, Distillation, OneStepTask
from .teachers import TARGET_MODULES, LoRA
from .vsd import PER, Kappa

# Each paper's range of κ for Stable Diffusion.
METHODS = {"pg-sb": (0.5, 4.0), "swiftbrush": (4.5,)}


@dataclass
class DistillationArguments:
    """What to distil, and how. The defaults are PG-SB's for Stable Diffusion."""

    method: str = field(default="pg-sb", metadata=hint("pg-sb, or swiftbrush: one kappa, always."))
    pretrained_model_name_or_path: str = field(
        default="", metadata=hint("The teacher: a shipped model, a pipeline's folder or its id on the hub.")
    )
    student_model_name_or_path: str | None = field(
        default=None, metadata=hint("A pipeline whose denoiser the student starts from; else the teacher.")
    )
    prompts_file: str | None = field(default=None, metadata=hint("Prompts to train with, one a line."))
    dataset_name: str | None = field(
        default=None, metadata=hint("In place of that: a data set whose captions are the prompts.")
    )
    caption_column: str = field(default="text", metadata=hint("Where folders and `datasets` keep captions."))
    max_train_samples: int | None = field(default=None, metadata=hint("Use the first so many prompts."))
    cache_dir: str = field(default="outputs/cache", metadata=hint("Where encoded prompts are kept."))
    kappa: list[float] = field(
        default_factory=list, metadata=hint("Guidance of both teachers: two ends of a range, or one number.")
    )
    kappa_sampling: str = field(default="iteration", metadata=hint("A kappa for each iteration or sample."))
    t_range: list[float] = field(
        default_factory=lambda: [0.02, 0.981],
        metadata=hint("Timesteps of the student's loss, as parts of all."),
    )
    student_timestep: int | None = field(
        default=None, metadata=hint("Where the student is evaluated; the last timestep.")
    )
    caption_dropout: float = field(
        default=0.1, metadata=hint("How often the LoRA teacher sees no prompts for a batch.")
    )
    rank: int = field(default=64, metadata=hint("Rank of the LoRA teacher."))
    lora_alpha: float = field(default=128.0, metadata=hint("Its LoRA is scaled by lora_alpha / rank."))
    lora_target_modules: list[str] = field(
        default_factory=lambda: list(TARGET_MODULES), metadata=hint("Layers that get its LoRA.")
    )
    lora_learning_rate: float = field(default=1e-3, metadata=hint("Learning rate of the LoRA teacher."))
    clip_model_name_or_path: str | None = field(
        default=None, metadata=hint("A CLIP for the clamped CLIP loss; never the evaluator of the student.")
    )
    clip_weight: float = field(default=0.1, metadata=hint("Its weight at the start; it falls to 0."))
    clip_threshold: float = field(default=0.37, metadata=hint("Tau: similar enough to be left alone."))
    tiny_vae: str | None = field(
        default=None, metadata=hint("An AutoencoderTiny to decode for the CLIP loss; else the model's own.")
    )
    negative_prompts_file: str | None = field(
        default=None, metadata=hint("NASA-T: negative prompts, one a line.")
    )
    nasa_scale: list[float] = field(
        default_factory=lambda: [0.0, 1.0], metadata=hint("NASA-T: the range of alpha.")
    )
    validation_prompts: list[str] = field(
        default_factory=list, metadata=hint("Prompts of the sample pictures.")
    )

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("--method", self.method, METHODS)
        if self.kappa_sampling not in PER:
            raise unknown_name("--kappa_sampling", self.kappa_sampling, PER)
        if not self.pretrained_model_name_or_path:
            raise ValueError("Give --pretrained_model_name_or_path.")
        if (self.prompts_file is None) == (self.dataset_name is None):
            raise ValueError("Give either --prompts_file or --dataset_name.")
        if self.method == "swiftbrush" and len(set(self.kappa)) > 1:
            raise ValueError(f"swiftbrush has one --kappa, not {self.kappa}; pg-sb draws it from a range.")
        for name in ("t_range", "nasa_scale"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"--{name} takes the two ends of a range, not {getattr(self, name)}.")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"--max_train_samples is {self.max_train_samples}; it must be at least 1.")

    def distillation(self) -> Distillation:
        """
        Raises:
            ValueError: values out of range.
        """
        first, end = self.t_range
        nasa = None if self.negative_prompts_file is None else (self.nasa_scale[0], self.nasa_scale[1])
        return Distillation(
            kappa=Kappa.of(self.kappa or METHODS[self.method], self.kappa_sampling),
            t_range=(first, end),
            caption_dropout=self.caption_dropout,
            student_timestep=self.student_timestep,
            nasa_scale=nasa,
            lora=LoRA(self.rank, self.lora_alpha, tuple(self.lora_target_modules), self.lora_learning_rate),
        )

    def prompts(self) -> list[str]:
        """The distinct prompts, in their order.

        Raises:
            FileFormatError: a file without prompts, or a data set without captions.
            Others: as `dmkit.data.load`.
        """
        if self.dataset_name is None:
            texts: Sequence[str] | None = read_prompts(self.prompts_file or "")
        else:
            texts = data.load(self.dataset_name, split="train", caption_column=self.caption_column).captions
        if texts is None:
            raise FileFormatError(f"{self.dataset_name} has no captions.")
        return list(dict.fromkeys(texts))[: self.max_train_samples]


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with PG-SB's defaults. `learning_rate` is the student's."""

    output_dir: str = field(
        default="outputs/one-step", metadata=hint("Where checkpoints and the student go.")
    )
    train_batch_size: int = field(default=64, metadata=hint("Prompts in one micro-batch."))
    max_train_steps: int | None = field(default=60_000, metadata=hint("Optimiser steps in all."))
    learning_rate: float = field(default=1e-6, metadata=hint("Learning rate of the student."))
    lr_scheduler: str = field(
        default="constant", metadata=hint("A name of diffusers.optimization.get_scheduler.")
    )
    lr_warmup_steps: int = field(default=0, metadata=hint("Steps of linear warm-up."))
    adam_beta1: float = field(default=0.9, metadata=hint("AdamW's beta1."))
    adam_weight_decay: float = field(default=0.0, metadata=hint("AdamW's weight decay."))
    save_model_epochs: int = field(default=0, metadata=hint("Epochs between two saves; 0: at the end."))


def parse(
    argv: Sequence[str] | None, description: str
) -> tuple[DistillationArguments, DistillationTrainingArguments]:
    """Parses flags over a recipe (`--config`); raises as `parse_arguments`."""
    kinds = (DistillationArguments, DistillationTrainingArguments)
    return parse_arguments(*kinds, description=description, argv=argv)  # type: ignore[return-value]


def distil(arguments: DistillationArguments, training: DistillationTrainingArguments) -> None:
    """Distils, and writes the student's pipeline into `output_dir`.

    Raises:
        ValueError: arguments that do not fit each other or the model.
        FileFormatError: a file that is not what it should be.
        TrainingError: as `Trainer.train`.
    """
    build(arguments, training).train()


def build(arguments: DistillationArguments, training: DistillationTrainingArguments) -> Trainer:
    """The trainer of `distil`, before its first step."""
    config, prompts = arguments.distillation(), arguments.prompts()
    folder = Path(arguments.cache_dir)
    set_seed(training.seed)
    pipe = zoo.load(arguments.pretrained_model_name_or_path)
    student = None
    if arguments.student_model_name_or_path is not None:
        student = denoiser_of(zoo.load(arguments.student_model_name_or_path))
    negatives = None
    if arguments.negative_prompts_file is not None:
        away = encode_prompts(pipe, read_prompts(arguments.negative_prompts_file), folder)
        negatives = conditions_of(away.tensors)
    rows: Dataset = encode_prompts(pipe, prompts, folder)
    clip = None
    if arguments.clip_model_name_or_path is not None:
        clip, rows = _clip(arguments, training, pipe, prompts, rows)  # type: ignore[arg-type]
    task = OneStepTask(
        pipe,
        config,
        student=student,
        clip=clip,
        negatives=negatives,
        validation_prompts=arguments.validation_prompts,
    )
    return Trainer(task, rows, training)


def _clip(
    arguments: DistillationArguments,
    training: DistillationTrainingArguments,
    pipe: Any,
    prompts: list[str],
    rows: CachedTensors,
) -> tuple[CLIPLoss, CachedTensors]:
    """The CLIP loss, and the rows with the prompts' embeddings that it needs."""
    if training.max_train_steps is None:
        raise ValueError("The CLIP loss falls to 0 at the end: give --max_train_steps.")
    scorer = CLIPScorer.from_pretrained(str(arguments.clip_model_name_or_path))
    vae = pipe.vae
    if arguments.tiny_vae is not None:
        vae = AutoencoderTiny.from_pretrained(arguments.tiny_vae, use_safetensors=True)
    loss = CLIPLoss(
        scorer,
        vae,
        training.max_train_steps,
        arguments.clip_weight,
        arguments.clip_threshold,
    )
    return loss, CachedTensors({**rows.tensors, CLIP_TEXTS: scorer.embed_texts(prompts)})
