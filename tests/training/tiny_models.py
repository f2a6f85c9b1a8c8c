"""Untrained networks of a latent text-to-image pipeline that take milliseconds, and captioned pictures."""

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from dmkit.data import ImageDataset
from dmkit.training.autoencoding import TrainableAutoencoder
from dmkit.training.contrastive import MAX_LENGTH, train_tokenizer
from dmkit.training.randomness import Draws
from dmkit.training.trainer import Step

SIDE = 8
CAPTIONS = ("a red heart", "a green heart", "a cat on a blue background", "a small dog in the top left")


def step(seed: int = 0) -> Step:
    return Step(0, "main", Draws(seed, 0, rank=0, world=1))


def pictures(count: int = 12, captions: tuple[str, ...] | None = CAPTIONS, seed: int = 0) -> ImageDataset:
    """Random RGB pictures of 8x8 pixels, captioned in turn."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    texts = captions and [captions[k % len(captions)] for k in range(count)]
    return ImageDataset(pixels, name="tiny", split="train", channels=3, resolution=SIDE, captions=texts)


def tiny_vae() -> TrainableAutoencoder:
    """To latents of 4x4x4."""
    torch.manual_seed(1)
    return TrainableAutoencoder(
        sample_size=SIDE,
        latent_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def tiny_clip(tokenizer) -> CLIPModel:
    torch.manual_seed(2)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "projection_dim": 16,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": SIDE, "patch_size": 4}
    return CLIPModel(
        CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=16)
    ).eval()


def tiny_text_to_image() -> StableDiffusionPipeline:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=600)
    clip = tiny_clip(tokenizer)
    text_encoder = CLIPTextModel(clip.config.text_config).eval()
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    return StableDiffusionPipeline(
        vae=tiny_vae().plain().eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
