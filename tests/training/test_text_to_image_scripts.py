"""The scripts that make a text-to-image model, one after the other, on a small captioned folder."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline
from running_scripts import run_script, script_main
from safetensors.torch import load_file
from tiny_models import CAPTIONS, SIDE, pictures
from transformers import CLIPModel, CLIPTokenizer

from dmkit.images import to_pil

UNET = "unet/diffusion_pytorch_model.safetensors"
COMMON = {
    "resolution": SIDE,
    "max_train_steps": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    # A key bias has no gradient but rounding noise, which Adam at 1e-8 would blow up to whole steps.
    "adam_epsilon": 1e-6,
    "checkpointing_steps": 0,
    "save_images_epochs": 0,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """Where the captioned pictures lie, and where everything that is made of them goes."""
    room = tmp_path_factory.mktemp("room")
    (room / "pictures").mkdir()
    lines = []
    for k, item in enumerate(pictures(12).__getitems__(range(12))):
        to_pil(item["images"]).save(room / "pictures" / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "words": item["captions"]}))
    (room / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    return room


def recipe(path: Path, **settings) -> list[str]:
    """Writes a recipe; returns the arguments that name it."""
    path.write_text(yaml.safe_dump({**COMMON, **settings}))
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def vae(room) -> Path:
    settings = {
        "dataset_name": [str(room / "pictures")] * 2,
        "dataset_repeats": [1, 2],
        "train_batch_size": 6,
        "block_out_channels": [8, 8],
        "latent_channels": 2,
        "norm_num_groups": 4,
        "eval_batch_size": 4,
        "save_images_epochs": 1,
    }
    with script_main("train_autoencoder") as main:
        main([*recipe(room / "autoencoder.yaml", **settings), "--output_dir", str(room / "vae")])
    return room / "vae"


@pytest.fixture(scope="module")
def clip(room) -> Path:
    settings = {
        "dataset_name": str(room / "pictures"),
        "caption_column": "words",
        "train_batch_size": 4,
        "vocab_size": 540,
        "hidden_size": 16,
        "text_layers": 1,
        "vision_layers": 1,
        "patch_size": 4,
        "num_attention_heads": 2,
    }
    with script_main("train_clip") as main:
        main([*recipe(room / "clip.yaml", **settings), "--output_dir", str(room / "clip")])
    return room / "clip"


@pytest.fixture(scope="module")
def denoiser(room, vae, clip) -> list[str]:
    """Arguments of `train_text_to_image` but where to write and the batch size."""
    return recipe(
        room / "text_to_image.yaml",
        dataset_name=str(room / "pictures"),
        vae=str(vae),
        text_encoder=str(clip),
        caption_column="words",
        cache_dir=str(room / "cache"),
        block_out_channels=[8, 8],
        attention_levels=[1],
        num_attention_heads=2,
        norm_num_groups=4,
        prediction_type="v_prediction",
        snr_gamma=5.0,
        caption_dropout=0.5,
        validation_prompts=list(CAPTIONS[:2]),
    )


@pytest.fixture(scope="module")
def main():
    with script_main("train_text_to_image") as main:
        yield lambda *arguments: main([str(argument) for argument in arguments])


def test_the_autoencoder_has_the_recipes_shape_and_a_scaling_factor(vae):
    network = AutoencoderKL.from_pretrained(vae)
    images = torch.stack([item["images"] for item in pictures(12).__getitems__(range(12))])
    latents = network.encode(images).latent_dist.mean
    assert latents.shape == (12, 2, SIDE // 2, SIDE // 2)
    assert (latents * network.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-4)
    # Three times 12 pictures are six steps an epoch: the only grid is the one at the end.
    assert [path.name for path in (vae / "samples").iterdir()] == ["step-0000004.png"]


def test_the_clip_comes_with_its_tokenizer(clip):
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    assert 514 < len(tokenizer) <= 540
    assert model.config.text_config.vocab_size == len(tokenizer)
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id
    tokens = tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")
    out = model(**tokens, pixel_values=torch.zeros(3, 3, SIDE, SIDE))
    assert out.logits_per_image.shape == (3, 4)


def test_two_processes_train_what_one_trains(room, denoiser, main):
    run_script(
        "train_text_to_image",
        *(*denoiser, "--output_dir", str(room / "two"), "--train_batch_size", "2"),
        *("--checkpointing_steps", "4"),
        processes=2,
    )
    assert json.loads((room / "two/checkpoint-4/state.json").read_text())["processes"] == 2
    written = {path.name: path.stat().st_ino for path in (room / "cache").iterdir()}
    assert len(written) == 2
    main(*denoiser, "--output_dir", room / "one", "--train_batch_size", 4)
    # Encoded once.
    assert {path.name: path.stat().st_ino for path in (room / "cache").iterdir()} == written
    alone, together = load_file(room / "one" / UNET), load_file(room / "two" / UNET)
    assert alone.keys() == together.keys()
    assert max((alone[k] - together[k]).abs().max().item() for k in alone) < 1e-5
    # The comparison can fail: other draws end elsewhere.
    main(*denoiser, "--output_dir", room / "other", "--train_batch_size", 4, "--caption_dropout", 0)
    other = load_file(room / "other" / UNET)
    assert max((alone[k] - other[k]).abs().max().item() for k in alone) > 1e-4

    pipe = DiffusionPipeline.from_pretrained(room / "two")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.vae.config.scaling_factor == AutoencoderKL.from_pretrained(room / "vae").config.scaling_factor
    images = pipe(list(CAPTIONS[:2]), num_inference_steps=2, output_type="np").images
    assert images.shape == (2, SIDE, SIDE, 3)

    # A finished pipeline is a place to start from, with its own schedule and target.
    given = ["--dataset_name", room / "pictures", "--caption_column", "words", "--cache_dir", room / "cache"]
    settings = recipe(room / "further.yaml", pretrained_model_name_or_path=str(room / "two"))
    main(*settings, *given, "--output_dir", room / "further", "--train_batch_size", 4)
    further = DiffusionPipeline.from_pretrained(room / "further")
    assert further.scheduler.config.prediction_type == "v_prediction"
    moved = max(
        (weights - together[name]).abs().max().item()
        for name, weights in load_file(room / "further" / UNET).items()
    )
    assert 0 < moved < 4 * 2 * 1e-3  # four steps of Adam from there, not from new weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", ""], "Give --dataset_name"),
        (
            ["--config", "no_vae.yaml"],
            "Give --pretrained_model_name_or_path, or both --vae and --text_encoder",
        ),
        (["--config", "wrong.yaml"], "Unknown recipe key 'text_encodr'. Did you mean 'text_encoder'?"),
        (["--prediction_type", "velocity"], "Did you mean 'v_prediction'?"),
        (["--caption_column", "text"], "pictures has no captions"),
        (["--enable_xformers_memory_efficient_attention", "True"], "pip install 'dmkit[xformers]'"),
    ],
)
def test_bad_input_of_the_denoiser_is_refused_by_name(room, denoiser, main, arguments, message, monkeypatch):
    monkeypatch.chdir(room)
    (room / "no_vae.yaml").write_text(f"dataset_name: {room / 'pictures'}\ntext_encoder: x\n")
    (room / "wrong.yaml").write_text("text_encodr: x\n")
    before = [] if arguments[0] == "--config" else denoiser
    with pytest.raises((ValueError, ImportError)) as caught:
        main(*before, "--output_dir", "refused", *arguments)
    assert message in str(caught.value)
    assert not (room / "refused").exists()


def test_bad_input_of_the_other_scripts_is_refused_by_name(room):
    with script_main("train_autoencoder") as main:
        with pytest.raises(ValueError, match="Give at least one --dataset_name"):
            main([])
        with pytest.raises(ValueError, match="1 --dataset_repeats for 2 data sets"):
            main(["--dataset_name", "a", "b", "--dataset_repeats", "2"])
        with pytest.raises(ValueError, match="digits has 1 channels, not 3"):
            main(["--dataset_name", str(room / "pictures"), "digits"])
    with script_main("train_clip") as main:
        captioned = ["--dataset_name", str(room / "pictures"), "--caption_column", "words"]
        with pytest.raises(ValueError, match="Give --dataset_name"):
            main([])
        with pytest.raises(ValueError, match="pictures has no captions"):
            main(captioned[:2])
        with pytest.raises(ValueError, match="vocab_size is 100; bytes and special tokens alone are 514"):
            main([*captioned, "--vocab_size", "100"])
