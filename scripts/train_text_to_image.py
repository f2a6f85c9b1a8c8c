"""Trains the denoiser of a latent text-to-image model, as a `StableDiffusionPipeline`.

    accelerate launch scripts/train_text_to_image.py --config scripts/recipes/emoji.yaml

The autoencoder, the text encoder and its tokenizer are given, frozen; latents and caption embeddings are
encoded once, into `--cache_dir`, so that a step costs only the denoiser. Argument names follow Diffusers'
example of this name. `--continual cuber --old_dataset_name NAME` fine-tunes without losing what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.import_utils import is_xformers_available
from transformers import CLIPTextModel, CLIPTokenizer

from dmkit import data
from dmkit.auxiliary.continual.cuber.finetuning import ContinualArguments, go_on
from dmkit.errors import MissingExtraError
from dmkit.models.arguments import ScaleLongArguments
from dmkit.training.ant.configure import AntArguments, gradient_rule, timestep_sampler
from dmkit.training.arguments import TrainingArguments, hint, parse_arguments
from dmkit.training.caching import CachedTensors, encode_dataset
from dmkit.training.denoising import TextToImageTask
from dmkit.training.trainer import Trainer


@dataclass
class ModelArguments:
    """What to train, and on what."""

    dataset_name: str = field(
        default="", metadata=hint("A captioned data set of dmkit.data, a folder, or `datasets`.")
    )
    pretrained_model_name_or_path: str | None = field(
        default=None, metadata=hint("A pipeline to start from; else give the next two.")
    )
    vae: str | None = field(default=None, metadata=hint("Folder of an AutoencoderKL."))
    text_encoder: str | None = field(default=None, metadata=hint("Folder of a CLIP and its tokenizer."))
    caption_column: str = field(default="text", metadata=hint("Where folders and `datasets` keep captions."))
    resolution: int = field(default=32, metadata=hint("Side of the images in pixels."))
    cache_dir: str = field(default="outputs/cache", metadata=hint("Where encoded data is kept."))
    block_out_channels: list[int] = field(
        default_factory=lambda: [64, 128], metadata=hint("Width by level of a new denoiser.")
    )
    layers_per_block: int = field(default=1, metadata=hint("Residual layers by level."))
    attention_levels: list[int] = field(
        default_factory=lambda: [0, 1], metadata=hint("Levels with attention to the text, from 0.")
    )
    num_attention_heads: int = field(default=4, metadata=hint("Attention heads."))
    norm_num_groups: int = field(default=16, metadata=hint("Groups of the group norms."))
    prediction_type: str = field(default="epsilon", metadata=hint("epsilon, sample or v_prediction."))
    snr_gamma: float | None = field(default=None, metadata=hint("Gamma of Min-SNR weighting."))
    caption_dropout: float = field(default=0.1, metadata=hint("How often the caption is left empty."))
    validation_prompts: list[str] = field(default_factory=list, metadata=hint("Prompts of the sample grids."))
    guidance_scale: float = field(default=5.0, metadata=hint("Guidance of the sample grids."))
    enable_xformers_memory_efficient_attention: bool = field(default=False, metadata=hint("Use xformers."))

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("Give --dataset_name.")
        if self.pretrained_model_name_or_path is None and None in (self.vae, self.text_encoder):
            raise ValueError("Give --pretrained_model_name_or_path, or both --vae and --text_encoder.")


def new_pipeline(model: ModelArguments) -> StableDiffusionPipeline:
    vae = AutoencoderKL.from_pretrained(model.vae, use_safetensors=True)
    text_encoder = CLIPTextModel.from_pretrained(model.text_encoder, use_safetensors=True)
    levels = range(len(model.block_out_channels))
    kinds = ["CrossAttn" if level in model.attention_levels else "" for level in levels]
    unet = UNet2DConditionModel(
        sample_size=model.resolution // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=tuple(model.block_out_channels),
        layers_per_block=model.layers_per_block,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=model.num_attention_heads,
        norm_num_groups=model.norm_num_groups,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(model.text_encoder),
        unet=unet,
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main(argv: list[str] | None = None) -> None:
    model, training, ant, scalelong, continual = parse_arguments(
        ModelArguments,
        TrainingArguments,
        AntArguments,
        ScaleLongArguments,
        ContinualArguments,
        description=__doc__,
        argv=argv,
    )
    if continual.continual is not None:
        if model.pretrained_model_name_or_path is None:
            raise ValueError(
                f"--continual {continual.continual} keeps what a model knows: give "
                "--pretrained_model_name_or_path."
            )
        if ant.mtl != "sum":
            raise ValueError(f"--continual {continual.continual} and --mtl {ant.mtl} are two gradient rules.")
    set_seed(training.seed)
    if model.pretrained_model_name_or_path is None:
        pipe = new_pipeline(model)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(
            model.pretrained_model_name_or_path, safety_checker=None, use_safetensors=True
        )
    pipe.unet = scalelong.scaled(pipe.unet)
    if model.enable_xformers_memory_efficient_attention:
        if not is_xformers_available():
            raise MissingExtraError("xformers", "xformers")
        pipe.unet.enable_xformers_memory_efficient_attention()
    kind = model.prediction_type
    if model.pretrained_model_name_or_path is not None:
        kind = pipe.scheduler.config.prediction_type
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    task = TextToImageTask(
        pipe,
        scheduler,
        snr_gamma=model.snr_gamma,
        sampler=timestep_sampler(ant, scheduler),
        caption_dropout=model.caption_dropout,
        prompts=model.validation_prompts,
        guidance_scale=model.guidance_scale,
    )

    def encoded(name: str, folder: Path, chosen: Callable[[Any], list[int]] | None = None) -> CachedTensors:
        dataset = data.load(
            name, split="train", resolution=model.resolution, caption_column=model.caption_column
        )
        dataset = dataset if chosen is None else dataset.select(chosen(dataset))
        return encode_dataset(dataset, pipe.vae, pipe.text_encoder, pipe.tokenizer, folder)

    rows = encoded(model.dataset_name, Path(model.cache_dir))
    scalelong.join(task, training.output_dir)
    if continual.old_dataset_name is not None:
        old = encoded(continual.old_dataset_name, Path(model.cache_dir) / "old", continual.some)
        go_on(task, pipe.unet, old, rows, training, continual.learner(pipe.unet, training))
    else:
        Trainer(task, rows, training, rule=gradient_rule(ant)).train()


if __name__ == "__main__":
    main()
