"""The clamped CLIP loss and its judge."""

import json

import pytest
import torch
from distilling_cases import CAPTIONS, pipeline_of
from tiny_models import tiny_clip
from transformers import CLIPProcessor

from dmkit.distillation import CLIPLoss, CLIPScorer
from dmkit.distillation.clip import clamped
from dmkit.errors import FileFormatError
from dmkit.training.contrastive import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, vocab_size=600)


@pytest.fixture(scope="module")
def scorer(tokenizer):
    return CLIPScorer(tiny_clip(tokenizer), tokenizer)


def images(side=8, seed=0):
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_each_image_is_clamped():
    cosines = torch.tensor([0.5, 0.37, 0.1], requires_grad=True)
    loss = clamped(cosines, 0.37)
    loss.backward()
    assert loss.item() == pytest.approx(0.09)  # not max(0, 0.37 - mean) = 0.0467
    assert cosines.grad.tolist()[0] == 0
    assert cosines.grad[2].item() == pytest.approx(-1 / 3)
    enough = torch.tensor([0.4, 0.9], requires_grad=True)
    loss = clamped(enough, 0.37)
    loss.backward()
    assert loss.item() == 0
    assert not enough.grad.any()


def test_the_weight_falls_to_nothing(scorer):
    vae = pipeline_of("sd").vae
    loss = CLIPLoss(scorer, vae, steps=11)
    assert [loss.weight_at(k) for k in (0, 5, 10, 20)] == pytest.approx([0.1, 0.05, 0, 0])
    assert CLIPLoss(scorer, vae, steps=1).weight_at(0) == 0.1
    assert loss(images(), scorer.embed_texts(CAPTIONS[:3]), 10).item() == 0


def test_the_gradient_reaches_the_latents(scorer):
    vae = pipeline_of("sd").vae
    x0 = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = CLIPLoss(scorer, vae, steps=10, threshold=1.0)
    loss(x0, scorer.embed_texts(CAPTIONS[:3]), 0).backward()
    assert all(x0.grad.flatten(1).abs().sum(1) > 0)
    assert not any(p.grad is not None for p in (*vae.parameters(), *scorer.clip.parameters()))


def test_latents_are_scaled_back(scorer):
    vae = pipeline_of("sd").vae
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert vae.config.scaling_factor != 1
    with torch.no_grad():
        expected = vae.decode(latents / vae.config.scaling_factor).sample
        torch.testing.assert_close(CLIPLoss(scorer, vae, steps=1).decode(latents), expected)


def test_the_judge_is_clip(scorer, tokenizer):
    tokens = tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = scorer.clip(**tokens, pixel_values=images())
        ours = scorer.embed_images(images()) @ scorer.embed_texts(CAPTIONS, batch_size=3).T
    torch.testing.assert_close(ours, out.logits_per_image / scorer.clip.logit_scale.exp(), atol=1e-5, rtol=0)


def test_another_size_is_resized_with_gradients(scorer):
    big = images(20).requires_grad_()
    scorer.embed_images(big)[:, 0].sum().backward()
    assert (big.grad != 0).all()


def test_a_folder_with_its_pixels(tmp_path, scorer, tokenizer):
    scorer.clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = CLIPScorer.from_pretrained(tmp_path)
    assert torch.equal(plain.embed_images(images()), scorer.embed_images(images()))
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": mean,
        "image_std": std,
        "size": {"shortest_edge": 8},
        "crop_size": {"height": 8, "width": 8},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    coloured = CLIPScorer.from_pretrained(tmp_path)
    pictures = (images() + 1).div(2).mul(255).round().byte()
    theirs = CLIPProcessor.from_pretrained(tmp_path)(
        text=["x"], images=list(pictures.permute(0, 2, 3, 1).numpy()), return_tensors="pt"
    )
    with torch.no_grad():
        expected = scorer.clip.get_image_features(pixel_values=theirs.pixel_values)
        expected = getattr(expected, "pooler_output", expected)
        ours = coloured.embed_images(pictures.float() / 127.5 - 1)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(expected, dim=1), atol=1e-4, rtol=0)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"preprocessor_config.json is not valid JSON"):
        CLIPScorer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError, match="is not a CLIP with its tokenizer"):
        CLIPScorer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -0.1}, "clip_weight is -0.1; it must be at least 0"),
        ({"threshold": 1.5}, r"clip_threshold is 1.5; it must be in \(0, 1\]"),
    ],
)
def test_bad_values(scorer, change, message):
    with pytest.raises(ValueError, match=message):
        CLIPLoss(scorer, pipeline_of("sd").vae, 10, **change)
