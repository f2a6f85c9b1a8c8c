"""Refits a trained text-to-image pipeline to narrower latents or to another text encoder, so that training
goes on instead of starting anew.

    python scripts/refit_text_to_image.py emoji outputs/refit --latent-channels 4 --text-encoder outputs/clip

Latents are projected onto their leading principal directions, P with orthonormal rows: the autoencoder then
encodes to P z and decodes from Pᵀ z, the denoiser f becomes P f(Pᵀ z). With as many channels as before this
is a rotation, and nothing changes. The states h' of another text encoder are mapped onto the old ones by
least squares, h ≈ M h', and the cross-attention's W_k h and W_v h become W_k M h' and W_v M h'. What comes
out is to be trained further: `scripts/train_autoencoder.py` and `scripts/train_text_to_image.py` take it as
`--pretrained_model_name_or_path`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as UNet
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dmkit import data, zoo
from dmkit._files import atomic_folder
from dmkit.training.autoencoding import scaling_factor


def principal_directions(latents: Tensor, count: int) -> Tensor:
    """P, (count, C) with orthonormal rows, of latents (B, C, H, W): what keeps most of their power."""
    rows = latents.transpose(0, 1).flatten(1).double()
    vectors = torch.linalg.eigh(rows @ rows.T).eigenvectors
    return vectors[:, -count:].T.flip(0)


def mapped(conv: nn.Conv2d, *, before: Tensor | None = None, after: Tensor | None = None) -> nn.Conv2d:
    """The convolution after(conv(before(x))), for matrices (out, in) that act on the channels."""
    weight, bias = conv.weight.data.double(), conv.bias.data.double()
    if before is not None:
        weight = torch.einsum("ocij,cd->odij", weight, before)
    if after is not None:
        weight, bias = torch.einsum("po,ocij->pcij", after, weight), after @ bias
    made = nn.Conv2d(weight.shape[1], weight.shape[0], conv.kernel_size, conv.stride, conv.padding)
    made.weight.data, made.bias.data = weight.float(), bias.float()
    return made


def narrowed_autoencoder(vae: AutoencoderKL, P: Tensor) -> AutoencoderKL:
    """Encodes to P z and decodes from Pᵀ z. The logarithms of the variances are averaged with weights P²."""
    made = AutoencoderKL.from_config({**vae.config, "latent_channels": len(P)})
    there, full = made.state_dict(), vae.state_dict()
    made.load_state_dict({**there, **{k: v for k, v in full.items() if v.shape == there[k].shape}})
    zeros = torch.zeros_like(P)
    both = torch.cat([torch.cat([P, zeros], 1), torch.cat([zeros, P**2], 1)])
    # All into the encoder's last convolution, which is one of the two whose width changes.
    quant: Any = vae.quant_conv
    linear = quant.weight.data.double()[:, :, 0, 0]
    made.encoder.conv_out = mapped(vae.encoder.conv_out, after=both @ linear)
    made.encoder.conv_out.bias.data += (both @ quant.bias.data.double()).float()
    made.quant_conv = identity(2 * len(P))
    # Before the decoder: y = W Pᵀ z + b. A bias within its range stays there, where the borders' padding is.
    post: Any = vae.post_quant_conv
    wide = post.weight.data.double()[:, :, 0, 0] @ P.T
    bias = post.bias.data.double()
    inside = torch.linalg.lstsq(wide, bias[:, None]).solution[:, 0]
    made.post_quant_conv = identity(len(P))
    made.post_quant_conv.bias.data = inside.float()
    made.decoder.conv_in = mapped(vae.decoder.conv_in, before=wide)
    outside = vae.decoder.conv_in.weight.data.double().sum((2, 3)) @ (bias - wide @ inside)
    made.decoder.conv_in.bias.data += outside.float()
    return made


def identity(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1)
    conv.weight.data = torch.eye(channels)[:, :, None, None]
    conv.bias.data.zero_()
    return conv


def narrowed_denoiser(unet: UNet, P: Tensor) -> UNet:
    """P f(Pᵀ z)."""
    made = UNet.from_config({**unet.config, "in_channels": len(P), "out_channels": len(P)})
    there, full = made.state_dict(), unet.state_dict()
    made.load_state_dict({**there, **{k: v for k, v in full.items() if v.shape == there[k].shape}})
    made.conv_in, made.conv_out = mapped(unet.conv_in, before=P.T), mapped(unet.conv_out, after=P)
    return made


@torch.no_grad()
def states(tokenizer: Any, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Hidden states (tokens, D) of all captions, in double precision."""
    found = []
    for k in range(0, len(captions), 256):
        tokens = tokenizer(captions[k : k + 256], padding="max_length", truncation=True, return_tensors="pt")
        found.append(encoder(tokens.input_ids)[0].flatten(0, 1).double())
    return torch.cat(found)


@torch.no_grad()
def take_text_encoder(pipe: Any, folder: Path, captions: list[str]) -> float:
    """Puts a text encoder and its tokenizer into a pipeline; returns how much of the old states' variance M
    gives back.

    Raises:
        ValueError: another vocabulary, whose tokens do not stand for the same words.
    """
    encoder, tokenizer = CLIPTextModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    if tokenizer.get_vocab() != pipe.tokenizer.get_vocab():
        raise ValueError(f"The tokenizer in {folder} has another vocabulary than the pipeline's.")
    old = states(pipe.tokenizer, pipe.text_encoder, captions)
    new = states(tokenizer, encoder, captions)
    M = torch.linalg.lstsq(new, old).solution.T
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight.data = (module.weight.data.double() @ M).float()
    pipe.register_modules(text_encoder=encoder, tokenizer=tokenizer)
    return float(1 - (old - new @ M.T).var() / old.var())


@torch.no_grad()
def main(
    model: Annotated[str, typer.Argument(help="A shipped model or a pipeline's folder.")],
    out: Annotated[Path, typer.Argument(help="Where the refitted pipeline goes.")],
    dataset_name: Annotated[str, typer.Option(help="Captioned data that the fit sees.")] = "emoji",
    latent_channels: Annotated[int | None, typer.Option(min=1, help="Channels to keep.")] = None,
    text_encoder: Annotated[Path | None, typer.Option(exists=True, help="A CLIP and its tokenizer.")] = None,
    examples: Annotated[int, typer.Option(min=2, help="Images and captions that the fit sees.")] = 2048,
) -> None:
    pipe: Any = zoo.load(model)
    if not isinstance(pipe, StableDiffusionPipeline):
        raise typer.BadParameter(f"{type(pipe).__name__} is no StableDiffusionPipeline.")
    dataset = data.load(dataset_name, split="train", resolution=pipe.vae.config.sample_size)
    if latent_channels is not None:
        if latent_channels > pipe.vae.config.latent_channels:
            raise typer.BadParameter(f"The latents have {pipe.vae.config.latent_channels} channels only.")
        images = torch.stack([item["images"] for item in dataset.__getitems__(range(examples))])
        P = principal_directions(pipe.vae.encode(images).latent_dist.mode(), latent_channels)
        vae = narrowed_autoencoder(pipe.vae, P)
        vae.register_to_config(scaling_factor=scaling_factor(vae, images))
        pipe.register_modules(vae=vae, unet=narrowed_denoiser(pipe.unet, P))
    if text_encoder is not None:
        share = take_text_encoder(pipe, text_encoder, list(dataset.captions[:examples]))
        print(f"{share:.1%} of the old text encoder's variance is a linear map of the new one's.")
    with atomic_folder(out) as folder:
        pipe.save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
