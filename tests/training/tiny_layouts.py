"""Untrained pipelines in the layouts of StableDiffusion, StableDiffusionXL and PixArt, of a few thousand
weights each.
"""

import torch
from diffusers import (
    DDIMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_models import CAPTIONS, tiny_text_to_image, tiny_vae
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

LAYOUTS = ("sd", "sdxl", "pixart")


def pipeline_of(layout: str):
    """One of `LAYOUTS`, or `pixart-sizes`, whose model is told the image's size."""
    makers = {"sd": tiny_text_to_image, "sdxl": tiny_xl, "pixart": tiny_pixart}
    pipe = makers[layout]() if layout in makers else tiny_pixart(told_sizes=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def tiny_xl() -> StableDiffusionXLPipeline:
    from dmkit.training.contrastive import MAX_LENGTH, train_tokenizer

    tokenizer = train_tokenizer(CAPTIONS, vocab_size=600)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(4)
    unet = UNet2DConditionModel(
        sample_size=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae().plain().eval(),
        text_encoder=CLIPTextModel(config).eval(),
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler(),
        add_watermarker=False,
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocabulary = {word: k for k, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_pixart(told_sizes: bool = False) -> PixArtAlphaPipeline:
    tokenizer = word_tokenizer()
    torch.manual_seed(5)
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    transformer = PixArtTransformer2DModel(
        sample_size=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=12,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        use_additional_conditions=told_sizes,
    )
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=tiny_vae().plain().eval(),
        transformer=transformer.eval(),
        scheduler=scheduler(),
    )
