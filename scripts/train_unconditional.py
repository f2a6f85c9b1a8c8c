"""Trains an unconditional pixel diffusion model (a `UNet2DModel` in a `DDPMPipeline`).

    accelerate launch scripts/train_unconditional.py --config scripts/recipes/fashion.yaml
    python scripts/train_unconditional.py --dataset_name digits --resolution 16 --max_train_steps 200

Argument names follow Diffusers' example of this name; `--config` reads a YAML recipe that flags override.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils.import_utils import is_xformers_available

from dmkit import data
from dmkit.errors import MissingExtraError, unknown_name
from dmkit.models import ScaleLongUNet2DModel, UViTModel
from dmkit.models.arguments import ScaleLongArguments
from dmkit.training.ant.configure import AntArguments, gradient_rule, timestep_sampler
from dmkit.training.arguments import TrainingArguments, hint, parse_arguments
from dmkit.training.denoising import DenoisingTask
from dmkit.training.trainer import Trainer


@dataclass
class ModelArguments:
    """What to train, and on what."""

    dataset_name: str | None = field(
        default=None, metadata=hint("A data set of dmkit.data, or of `datasets`.")
    )
    train_data_dir: str | None = field(default=None, metadata=hint("A folder of images instead."))
    resolution: int = field(default=32, metadata=hint("Side of the images in pixels."))
    random_flip: bool = field(default=False, metadata=hint("Mirror images at random."))
    model_config_name_or_path: str | None = field(
        default=None,
        metadata=hint(
            "Config of a UNet2DModel, ScaleLongUNet2DModel or UViTModel, folder or file; else built from the "
            "flags below."
        ),
    )
    block_out_channels: list[int] = field(
        default_factory=lambda: [32, 64, 96], metadata=hint("Width by level.")
    )
    layers_per_block: int = field(default=1, metadata=hint("Residual layers by level."))
    attention_levels: list[int] = field(default_factory=list, metadata=hint("Levels with attention, from 0."))
    attention_head_dim: int = field(default=32, metadata=hint("Channels of an attention head."))
    norm_num_groups: int = field(default=8, metadata=hint("Groups of the group norms."))
    dropout: float = field(default=0.0, metadata=hint("Dropout in the residual layers."))
    prediction_type: str = field(default="epsilon", metadata=hint("epsilon, sample or v_prediction."))
    snr_gamma: float | None = field(
        default=None, metadata=hint("Gamma of Min-SNR weighting; 5 in its paper.")
    )
    ddpm_num_steps: int = field(default=1000, metadata=hint("Steps of the noise schedule."))
    ddpm_num_inference_steps: int = field(default=50, metadata=hint("DDIM steps of the sample grids."))
    ddpm_beta_schedule: str = field(default="linear", metadata=hint("A beta_schedule of DDPMScheduler."))
    eval_batch_size: int = field(default=64, metadata=hint("Images in a sample grid."))
    enable_xformers_memory_efficient_attention: bool = field(default=False, metadata=hint("Use xformers."))

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise ValueError("Give one of --dataset_name and --train_data_dir.")
        if self.block_out_channels[-1] % self.attention_head_dim:
            raise ValueError(
                f"--attention_head_dim is {self.attention_head_dim}, which does not divide the "
                f"{self.block_out_channels[-1]} channels of the deepest level."
            )


MODELS = {kind.__name__: kind for kind in (UNet2DModel, ScaleLongUNet2DModel, UViTModel)}


def build_unet(arguments: ModelArguments, channels: int) -> Any:
    if (path := arguments.model_config_name_or_path) is not None:
        config = UNet2DModel.load_config(path)
        name = config.get("_class_name", "UNet2DModel")
        if name not in MODELS:
            raise unknown_name(f"class in {path},", name, MODELS)
        return MODELS[name].from_config(config)
    levels = len(arguments.block_out_channels)
    attended = [level in arguments.attention_levels for level in range(levels)]
    return UNet2DModel(
        sample_size=arguments.resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(arguments.block_out_channels),
        layers_per_block=arguments.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        attention_head_dim=arguments.attention_head_dim,
        norm_num_groups=arguments.norm_num_groups,
        dropout=arguments.dropout,
    )


def main(argv: list[str] | None = None) -> None:
    model, training, ant, scalelong = parse_arguments(
        ModelArguments, TrainingArguments, AntArguments, ScaleLongArguments, description=__doc__, argv=argv
    )
    set_seed(training.seed)
    dataset = data.load(
        model.dataset_name or model.train_data_dir, split="train", resolution=model.resolution
    )
    unet = scalelong.scaled(build_unet(model, dataset.channels))
    if model.enable_xformers_memory_efficient_attention:
        if not is_xformers_available():
            raise MissingExtraError("xformers", "xformers")
        unet.enable_xformers_memory_efficient_attention()
    scheduler = DDPMScheduler(
        num_train_timesteps=model.ddpm_num_steps,
        beta_schedule=model.ddpm_beta_schedule,
        prediction_type=model.prediction_type,
    )
    task = DenoisingTask(
        unet,
        scheduler,
        snr_gamma=model.snr_gamma,
        random_flip=model.random_flip,
        sampler=timestep_sampler(ant, scheduler),
        sample_steps=model.ddpm_num_inference_steps,
        num_samples=model.eval_batch_size,
    )
    scalelong.join(task, training.output_dir)
    Trainer(task, dataset, training, rule=gradient_rule(ant)).train()


if __name__ == "__main__":
    main()
