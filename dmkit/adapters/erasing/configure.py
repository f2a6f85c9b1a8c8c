"""Arguments of erasing, and what they start; for scripts and the command line."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import set_seed
from diffusers.utils.import_utils import is_xformers_available

from ... import zoo
from ...errors import MissingExtraError, unknown_name
from ...training.arguments import TrainingArguments, hint, parse_arguments
from ...training.checkpoint import save_into
from ...training.prompting import denoiser_of
from ...training.trainer import Trainer
from ..spm.weights import SPMMetadata
from . import uce
from .anchors import Anchors, GaussianAnchors, PromptAnchors, without_targets
from .esd import PARTS, ESDTask
from .latents import PartialDenoising
from .official import read_config
from .prompts import ErasePrompt, load_yaml, read_prompts
from .spm import SPMTask
from .task import ErasingTask, NoData, Samples

METHODS = ("spm", *PARTS, "uce")
SAMPLERS = ("gaussian", "prompts")

logger = logging.getLogger(__name__)


@dataclass
class ErasingArguments:
    """What to erase, from what, and how. The defaults are the SPM paper's."""

    method: str = field(default="spm", metadata=hint("spm, esd-x, esd-u or uce."))
    pretrained_model_name_or_path: str = field(
        default="", metadata=hint("A shipped model, a pipeline's folder or its id on the hub.")
    )
    target: list[str] = field(default_factory=list, metadata=hint("Concepts to erase, all at once."))
    surrogate: str = field(default="", metadata=hint("What is put in their place; nothing if empty."))
    templates: list[str] = field(
        default_factory=lambda: ["{}"],
        metadata=hint("Prompts to train on; {} is the concept. Not used by uce."),
    )
    prompts_file: str | None = field(
        default=None, metadata=hint("A prompts.yaml of SPM's released code, in place of --target.")
    )
    action: str = field(default="erase_with_la", metadata=hint("erase_with_la, or erase: no anchoring."))
    erasing_scale: float = field(default=1.0, metadata=hint("Eta: how far beyond the surrogate."))
    la_strength: float = field(default=1000.0, metadata=hint("Lambda: weight of latent anchoring."))
    sampling_batch_size: int | None = field(
        default=None, metadata=hint("Anchors a step; four for each latent if not given.")
    )
    anchor_sampler: str = field(default="gaussian", metadata=hint("Anchors: gaussian or prompts."))
    anchor_prompts: list[str] = field(
        default_factory=list, metadata=hint("Prompts to keep: of --anchor_sampler prompts, and of uce.")
    )
    anchor_alpha: float = field(default=1.0, metadata=hint("Alpha: how much anchors avoid the target."))
    anchor_unconditional: bool = field(default=True, metadata=hint("Anchor the unconditional prompt too."))
    resolution: int | None = field(default=None, metadata=hint("Side of the images; the model's own."))
    dynamic_resolution: bool = field(default=False, metadata=hint("Sides from half of it to all of it."))
    noise_scheduler: str = field(default="ddim", metadata=hint("ddim, ddpm, lms or euler_a."))
    max_denoising_steps: int | None = field(
        default=None, metadata=hint("Steps of a whole denoising; spm: 30, esd: 50.")
    )
    denoising_guidance_scale: float = field(default=3.0, metadata=hint("Guidance of these steps."))
    legacy_timestep: bool = field(default=False, metadata=hint("The released code's timestep."))
    adapter_name: str = field(default="spm", metadata=hint("Name of the adapter and its file."))
    rank: int = field(default=1, metadata=hint("Rank of the adapter."))
    alpha: float = field(default=1.0, metadata=hint("The adapter is scaled by alpha / rank; 0: by 1."))
    uce_regularisation: float = field(default=0.5, metadata=hint("uce: how much all else should stay."))
    validation_prompts: list[str] = field(
        default_factory=list, metadata=hint("Prompts of the sample pictures, beside the targets.")
    )
    validation_steps: int = field(default=30, metadata=hint("Denoising steps of the sample pictures."))
    validation_guidance_scale: float = field(default=7.5, metadata=hint("Their guidance."))
    enable_xformers_memory_efficient_attention: bool = field(default=False, metadata=hint("Use xformers."))

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("--method", self.method, METHODS)
        if self.anchor_sampler not in SAMPLERS:
            raise unknown_name("--anchor_sampler", self.anchor_sampler, SAMPLERS)
        if not self.pretrained_model_name_or_path:
            raise ValueError("Give --pretrained_model_name_or_path.")
        if bool(self.target) == (self.prompts_file is not None):
            raise ValueError("Give either --target or --prompts_file.")
        if wrong := [template for template in self.templates or [""] if template.count("{}") != 1]:
            raise ValueError(f"{wrong[0]!r} of --templates should have one {{}}, where the concept goes.")
        self.alpha = self.alpha or float(self.rank)
        if self.surrogate and self.surrogate in self.target:
            raise ValueError(f"{self.surrogate!r} cannot take its own place.")
        least = {"max_denoising_steps": 2, "sampling_batch_size": 1, "validation_steps": 1}
        for name, minimum in least.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"--{name} is {value}; it must be at least {minimum}.")


@dataclass
class ErasingTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the SPM paper's defaults. An epoch is a step: there is no data."""

    output_dir: str = field(default="outputs/erase", metadata=hint("Where checkpoints and the result go."))
    train_batch_size: int = field(default=1, metadata=hint("Latents a process sees in one micro-batch."))
    max_train_steps: int | None = field(default=3000, metadata=hint("Optimiser steps in all."))
    lr_scheduler: str = field(
        default="cosine_with_restarts", metadata=hint("A name of diffusers.optimization.get_scheduler.")
    )
    lr_num_cycles: int = field(default=3, metadata=hint("Restarts of cosine_with_restarts."))
    adam_beta1: float = field(default=0.9, metadata=hint("AdamW's beta1."))
    adam_weight_decay: float = field(default=1e-2, metadata=hint("AdamW's weight decay."))
    max_grad_norm: float = field(default=0.0, metadata=hint("Clip the gradient's norm; 0 turns it off."))
    save_images_epochs: int = field(default=500, metadata=hint("Steps between two pictures; 0: none."))
    save_model_epochs: int = field(default=0, metadata=hint("Steps between two saves; 0: at the end."))


def parse(argv: Sequence[str] | None, description: str) -> tuple[ErasingArguments, ErasingTrainingArguments]:
    """Parses flags over a recipe (`--config`), or over SPM's released configuration (`--official_config`).

    Raises:
        SystemExit: an unknown flag, or both kinds of configuration.
        FileFormatError, ValueError: as `dmkit.adapters.erasing.official.read_config`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    either = first.add_mutually_exclusive_group()
    either.add_argument("--official_config", type=Path)
    either.add_argument("--config")
    known, rest = first.parse_known_args(argv)
    kinds = (ErasingArguments, ErasingTrainingArguments)
    if known.official_config is None:
        rest = [*rest, "--config", known.config] if known.config else rest
        return parse_arguments(*kinds, description=description, argv=rest)  # type: ignore[return-value]
    arguments, unused = read_config(known.official_config)
    _warn(known.official_config, unused)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(arguments), encoding="utf-8")
        rest = [*rest, "--config", str(recipe)]
        return parse_arguments(*kinds, description=description, argv=rest)  # type: ignore[return-value]


def from_recipe(recipe: Path, **overrides: Any) -> tuple[ErasingArguments, ErasingTrainingArguments]:
    """The arguments of a recipe, with some of them replaced.

    Raises:
        ValueError: a key that neither kind of arguments has; the message names the near one.
    """
    chosen = {**load_yaml(recipe), **overrides}
    own, shared = (
        {field.name for field in fields(kind)} for kind in (ErasingArguments, ErasingTrainingArguments)
    )
    for key in chosen:
        if key not in own | shared:
            raise unknown_name("recipe key", key, own | shared)
    return (
        ErasingArguments(**{key: value for key, value in chosen.items() if key in own}),
        ErasingTrainingArguments(**{key: value for key, value in chosen.items() if key in shared}),
    )


def erase(arguments: ErasingArguments, training: ErasingTrainingArguments) -> None:
    """Erases, and writes the result into `output_dir`: the adapter's file (spm) or the whole edited pipeline.

    Raises:
        ValueError: arguments that do not fit each other or the model.
        FileFormatError: a file that is not what it should be.
        TrainingError: as `Trainer.train`.
    """
    prompts, training = _prompts(arguments, training)
    concepts = arguments.target or [prompt.target for prompt in prompts]
    kept, dropped = without_targets(arguments.anchor_prompts, concepts)
    if dropped:
        logger.warning("Not anchored, since they hold a target: %s.", "; ".join(dropped))
    arguments = replace(arguments, anchor_prompts=kept)
    set_seed(training.seed)
    pipe = zoo.load(arguments.pretrained_model_name_or_path)
    if getattr(pipe, "tokenizer", None) is None or not hasattr(pipe, "encode_prompt"):
        raise ValueError(f"{type(pipe).__name__} takes no prompts; erasing needs a text-to-image model.")
    if arguments.method == "uce":
        neutral = [prompt.neutral or "" for prompt in prompts]
        surrogates = {arguments.surrogate} if arguments.target else set(neutral)
        if len(surrogates) > 1:
            raise ValueError("uce takes one surrogate for all targets.")
        uce.edit(
            pipe,
            concepts,
            surrogates.pop(),
            preserve=arguments.anchor_prompts,
            regularisation=arguments.uce_regularisation,
        )
        save_into(Path(training.output_dir), pipe.save_pretrained)
        return
    if arguments.enable_xformers_memory_efficient_attention:
        if not is_xformers_available():
            raise MissingExtraError("xformers", "xformers")
        denoiser_of(pipe).enable_xformers_memory_efficient_attention()
    Trainer(_task(pipe, prompts, arguments, training), NoData(), training).train()


def _prompts(
    arguments: ErasingArguments, training: ErasingTrainingArguments
) -> tuple[list[ErasePrompt], ErasingTrainingArguments]:
    """What is erased, and the training with the batch size that a prompts file sets."""
    if arguments.prompts_file is not None:
        prompts, unused = read_prompts(arguments.prompts_file)
        _warn(arguments.prompts_file, unused)
        sizes = {prompt.batch_size for prompt in prompts}
        if len(sizes) > 1:
            raise ValueError(
                f"{arguments.prompts_file} has several batch sizes: {sorted(sizes)}. Choose one."
            )
        (size,) = sizes
        if training.train_batch_size not in (1, size):
            raise ValueError(
                f"--train_batch_size is {training.train_batch_size}, but batch_size in "
                f"{arguments.prompts_file} is {size}, which counts here as in the released code."
            )
        return prompts, replace(training, train_batch_size=size)
    size = training.train_batch_size
    return [
        ErasePrompt(
            template.replace("{}", target),
            neutral=arguments.surrogate and template.replace("{}", arguments.surrogate),
            action=arguments.action,
            guidance_scale=arguments.erasing_scale,
            resolution=arguments.resolution,
            dynamic_resolution=arguments.dynamic_resolution,
            batch_size=size,
            la_strength=arguments.la_strength,
            sampling_batch_size=arguments.sampling_batch_size or 4 * size,
        )
        for target in arguments.target
        for template in arguments.templates
    ], training


def _task(
    pipe: Any, prompts: list[ErasePrompt], arguments: ErasingArguments, training: TrainingArguments
) -> ErasingTask:
    latents = PartialDenoising(
        pipe.scheduler,
        kind=arguments.noise_scheduler,
        steps=arguments.max_denoising_steps or (30 if arguments.method == "spm" else 50),
        guidance_scale=arguments.denoising_guidance_scale,
        legacy_timestep=arguments.legacy_timestep,
    )
    samples = Samples(
        tuple(arguments.validation_prompts), arguments.validation_guidance_scale, arguments.validation_steps
    )
    if arguments.method in PARTS:
        return ESDTask(pipe, prompts, part=arguments.method, latents=latents, samples=samples)
    anchors: Anchors = GaussianAnchors(arguments.anchor_alpha)
    if arguments.anchor_sampler == "prompts":
        anchors = PromptAnchors(arguments.anchor_prompts, arguments.anchor_alpha)
    return SPMTask(
        pipe,
        prompts,
        name=arguments.adapter_name,
        rank=arguments.rank,
        alpha=arguments.alpha,
        latents=latents,
        anchors=anchors,
        anchor_unconditional=arguments.anchor_unconditional,
        samples=samples,
        metadata=SPMMetadata(
            # The concepts open it, not the prompts that it is trained on.
            targets=tuple(arguments.target),
            surrogate=arguments.surrogate,
            base_model=arguments.pretrained_model_name_or_path,
            iterations=training.max_train_steps,
            seed=training.seed,
        ),
    )


def _warn(path: str | Path, unused: Sequence[str]) -> None:
    if unused:
        logger.warning("Without effect here, in %s: %s.", path, ", ".join(unused))
