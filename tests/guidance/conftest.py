"""Untrained networks of a few thousand weights, of each family that can be steered."""

import diffusers
import pytest
import torch


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def pixart():
    torch.manual_seed(3)
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        interpolation_scale=1,
        use_additional_conditions=False,
    ).eval()


@pytest.fixture(scope="session")
def sd3():
    torch.manual_seed(4)
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()


@pytest.fixture(scope="session")
def flux():
    torch.manual_seed(5)
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    ).eval()


@pytest.fixture(scope="module")
def sdxl_parts(text_pipe):
    """Components of SDXL: two text encoders, a pooled embedding, size conditions."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(6)
    config = CLIPTextConfig(
        **{**text_pipe.text_encoder.config.to_dict(), "num_hidden_layers": 2, "projection_dim": 8}
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    ).eval()
    return {
        "vae": text_pipe.vae,
        "text_encoder": CLIPTextModel(config).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(config).eval(),
        "tokenizer": text_pipe.tokenizer,
        "tokenizer_2": text_pipe.tokenizer,
        "unet": unet,
        "scheduler": diffusers.EulerDiscreteScheduler(),
    }


@pytest.fixture(scope="module")
def sdxl_pipe(sdxl_parts):
    pipe = diffusers.StableDiffusionXLPipeline(**sdxl_parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
