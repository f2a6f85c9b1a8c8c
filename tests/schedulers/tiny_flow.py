"""The network of a flow-matching pipeline in miniature."""

from diffusers import SD3Transformer2DModel


def tiny_sd3_transformer() -> SD3Transformer2DModel:
    """For 8x8 latents of 4 channels, with weights of the global generator as it stands."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
