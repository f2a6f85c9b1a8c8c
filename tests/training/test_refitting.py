"""Narrower latents and another text encoder leave a trained pipeline what a projection can leave it."""

import json

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline
from running_scripts import script_main
from tiny_models import CAPTIONS, SIDE, pictures, tiny_text_to_image

from dmkit.images import to_pil


@pytest.fixture
def refit():
    with script_main("refit_text_to_image") as main:
        import sys

        yield sys.modules[main.__module__]


@pytest.fixture
def folder(tmp_path):
    lines = []
    for k, item in enumerate(pictures(12).__getitems__(range(12))):
        to_pil(item["images"]).save(tmp_path / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "text": item["captions"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def images():
    return torch.stack([item["images"] for item in pictures(12).__getitems__(range(12))])


@torch.no_grad()
def test_as_many_channels_are_a_rotation(refit):
    pipe = tiny_text_to_image()
    torch.nn.init.normal_(pipe.vae.post_quant_conv.bias)
    latents = pipe.vae.encode(images()).latent_dist.mode()
    P = refit.principal_directions(latents, 4)
    torch.testing.assert_close(P @ P.T, torch.eye(4).double())
    vae, unet = refit.narrowed_autoencoder(pipe.vae, P), refit.narrowed_denoiser(pipe.unet, P)
    rotated = torch.einsum("pc,bchw->bphw", P.float(), latents)
    torch.testing.assert_close(vae.encode(images()).latent_dist.mode(), rotated, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        vae.decode(rotated).sample, pipe.vae.decode(latents).sample, atol=1e-5, rtol=1e-4
    )
    seen = torch.randn(12, 5, 16, generator=torch.Generator().manual_seed(0))
    before = torch.einsum("pc,bchw->bphw", P.float(), pipe.unet(latents, 10, seen).sample)
    torch.testing.assert_close(unet(rotated, 10, seen).sample, before, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_fewer_channels_are_a_projection(refit):
    vae = tiny_text_to_image().vae
    vae.post_quant_conv.bias.zero_()
    latents = vae.encode(images()).latent_dist.mode()
    P = refit.principal_directions(latents, 2)
    kept = torch.einsum("pc,bchw->bphw", P.float(), latents)
    # No other two directions hold more of the latents.
    others = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))[0]
    assert kept.pow(2).sum() > torch.einsum("cp,bchw->bphw", others, latents).pow(2).sum()
    narrow = refit.narrowed_autoencoder(vae, P)
    torch.testing.assert_close(narrow.encode(images()).latent_dist.mode(), kept, atol=1e-5, rtol=1e-4)
    wide = torch.einsum("pc,bphw->bchw", P.float(), kept)
    torch.testing.assert_close(narrow.decode(kept).sample, vae.decode(wide).sample, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_linear_map_of_the_old_text_encoder_changes_nothing(refit, tmp_path):
    pipe = tiny_text_to_image()
    unet = pipe.unet
    x, ids = (
        torch.randn(2, 4, 4, 4),
        pipe.tokenizer(list(CAPTIONS[:2]), padding="max_length", return_tensors="pt").input_ids,
    )
    before = unet(x, 10, pipe.text_encoder(ids)[0]).sample
    norm = pipe.text_encoder.final_layer_norm
    kept = norm.weight.clone()
    norm.weight *= torch.linspace(0.5, 2, 16)
    pipe.text_encoder.save_pretrained(tmp_path / "other")
    pipe.tokenizer.save_pretrained(tmp_path / "other")
    norm.weight.copy_(kept)
    share = refit.take_text_encoder(pipe, tmp_path / "other", list(CAPTIONS))
    assert share == pytest.approx(1)
    torch.testing.assert_close(unet(x, 10, pipe.text_encoder(ids)[0]).sample, before, atol=1e-4, rtol=1e-4)


def test_another_vocabulary(refit, tmp_path):
    from dmkit.training.contrastive import train_tokenizer

    pipe = tiny_text_to_image()
    train_tokenizer(["zebras zoom by", "a quick quokka"], vocab_size=520).save_pretrained(tmp_path)
    pipe.text_encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has another vocabulary than the pipeline's"):
        refit.take_text_encoder(pipe, tmp_path, list(CAPTIONS))


def test_what_comes_out_loads_and_trains_on(refit, folder, tmp_path):
    source, out = tmp_path / "source", tmp_path / "narrow"
    tiny_text_to_image().save_pretrained(source)
    refit.main(str(source), out, dataset_name=str(folder), latent_channels=2, examples=12)
    pipe = DiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert (pipe.unet.config.in_channels, pipe.vae.config.latent_channels) == (2, 2)
    recipe = {
        "dataset_name": [str(folder)],
        "resolution": SIDE,
        "pretrained_model_name_or_path": str(out / "vae"),
        "output_dir": str(tmp_path / "on"),
        "max_train_steps": 1,
        "learning_rate": 1e-12,
        "train_batch_size": 4,
        "report_to": "none",
        "save_images_epochs": 0,
    }
    (tmp_path / "on.yaml").write_text(yaml.safe_dump(recipe))
    with script_main("train_autoencoder") as main:
        main(["--config", str(tmp_path / "on.yaml")])
    trained = AutoencoderKL.from_pretrained(tmp_path / "on")
    torch.testing.assert_close(trained.state_dict(), pipe.vae.state_dict(), atol=1e-6, rtol=0)
