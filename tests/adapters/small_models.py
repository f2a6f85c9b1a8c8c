"""Denoisers of true shape without weights, tiny pipelines with random ones, and random SPMs."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from dmkit.adapters import SPMLayer, SPMMetadata, SPMWeights
from dmkit.adapters.spm.layers import component_of, target_layers
from dmkit.adapters.spm.weights import shapes


def sd14_unet():
    """The UNet of Stable Diffusion 1.4, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )


def sdxl_unet():
    """The UNet of SDXL, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            cross_attention_dim=2048,
            attention_head_dim=[5, 10, 20],
            transformer_layers_per_block=[1, 2, 10],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def tiny_unet(**changes):
    """Two transformers of one block, width 8 and 16; 24 target layers."""
    torch.manual_seed(3)
    config = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def tiny_pixart_transformer():
    torch.manual_seed(4)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    ).eval()


def pixart_output(model):
    """The output of `tiny_pixart_transformer` for a fixed input of two samples."""
    draws = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=draws), torch.randn(2, 5, 16, generator=draws)
    with torch.no_grad():
        return model(
            x,
            encoder_hidden_states=text,
            timestep=torch.tensor([7, 7]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample


def letters():
    """A tokenizer that knows each letter."""
    alphabet = [chr(c) for c in range(97, 123)]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=16)


def tiny_vae():
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    ).eval()


def tiny_sdxl_pipe():
    torch.manual_seed(5)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=52,
        eos_token_id=53,
    )
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(config).eval(),
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer=letters(),
        tokenizer_2=letters(),
        unet=tiny_unet(
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=DDIMScheduler(clip_sample=False),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_pixart_pipe():
    """Through PEFT alone: neither this pipeline nor its denoiser has Diffusers' LoRA methods."""
    torch.manual_seed(6)
    config = T5Config(vocab_size=54, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipe = PixArtAlphaPipeline(
        tokenizer=letters(),
        text_encoder=T5EncoderModel(config).eval(),
        vae=tiny_vae(),
        transformer=tiny_pixart_transformer(),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_spm(model, seed=0, targets=("cat",), rank=1, alpha=1.0, size=0.3, **metadata):
    """An SPM for a model, of a size that shows; the model is not touched."""
    draws = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in target_layers(model).items():
        down, up = (size * torch.randn(shape, generator=draws) for shape in shapes(layer, rank))
        layers[name] = SPMLayer(down, up, torch.tensor(alpha))
    return SPMWeights(layers, SPMMetadata(targets=targets, **metadata), component_of(model))
