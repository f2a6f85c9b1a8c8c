"""`dmkit edit`, end to end: what it writes, and what it refuses."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dmkit import zoo
from dmkit.cli import app
from dmkit.images import to_pil

PROMPTS = ("--source-prompt", "a cat", "--target-prompt", "a dog", "--steps", 6)


@pytest.fixture(scope="module")
def model(text_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text_pipe.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def picture(workdir):
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    to_pil(noise).save("photo.png")
    return Path("photo.png")


def run(*arguments):
    return CliRunner().invoke(app, ["edit", *map(str, arguments)], catch_exceptions=False)


def dmkit(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    return lines[0]


def test_writes_pictures_that_say_what_made_them_and_the_errors(model, picture):
    said = dmkit(model, picture, *PROMPTS, "--guidance-scale", 4, "--gamma", 0.96, "--out", "made")
    files = {"original.png", "reconstruction.png", "edit.png", "comparison.png", "errors.json"}
    assert {file.name for file in Path("made").iterdir()} == files
    about = json.loads(Path("made/errors.json").read_text())
    for name in sorted(files - {"errors.json"}):
        with Image.open(f"made/{name}") as file:
            assert json.loads(file.text["parameters"]) == about
    told = {key: about[key] for key in ("model", "image", "source_prompt", "target_prompt", "steps", "gamma")}
    assert told == {
        "model": str(model),
        "image": "photo.png",
        "source_prompt": "a cat",
        "target_prompt": "a dog",
        "steps": 6,
        "gamma": 0.96,
    }
    assert (about["guidance_scale"], about["source_guidance_scale"], about["strength"]) == (4, 4, 0.8)
    assert about["reconstruction_latents_max_abs"] < 1e-9
    assert about["edit_max_abs"] > 10 * about["reconstruction_max_abs"]
    assert f"edit: max error {about['edit_max_abs']:.3g}" in said
    with Image.open("made/original.png") as original, Image.open(picture) as given:
        assert original.tobytes() == given.tobytes()
    with Image.open("made/comparison.png") as sheet:
        assert sheet.width > 3 * 160


def test_a_mask_from_a_file_keeps_the_rest(model, picture):
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 4, 16))
    mask.save("mask.png")
    dmkit(model, picture, *PROMPTS, "--mask", "mask.png", "--out", "made")
    about = json.loads(Path("made/errors.json").read_text())
    assert about["mask"] == "mask.png"
    assert about["edit_latents_outside_mask_max_abs"] < 1e-9
    assert about["edit_outside_mask_psnr_db"] > about["edit_psnr_db"]
    with Image.open("made/mask.png") as used:
        assert used.convert("L").tobytes() == mask.tobytes()


def test_a_mask_from_the_prompts(model, picture):
    dmkit(model, picture, *PROMPTS, "--mask", "auto", "--method", "ddim", "--out", "made")
    with Image.open("made/mask.png") as used:
        assert sorted(set(used.convert("L").tobytes())) == [0, 255]
    about = json.loads(Path("made/errors.json").read_text())
    assert (about["mask"], about["method"]) == ("auto", "ddim")
    assert "gamma" not in about
    assert about["reconstruction_latents_max_abs"] > 1e-3


def test_what_cannot_be_done_is_said_in_one_line(model, picture, tiny_pipeline):
    assert "takes no prompts" in refusal(tiny_pipeline, picture, *PROMPTS)
    assert "--mask takes auto or a picture file; 'autp' is not a file" in refusal(
        model, picture, *PROMPTS, "--mask", "autp"
    )
    assert "Did you mean 'edict'" in refusal(model, picture, *PROMPTS, "--method", "edikt")
    assert "multiplies rounding errors" in refusal(
        model, picture, *PROMPTS, "--gamma", 0.1, "--strength", 1, "--steps", 10
    )
    assert "fewer than 2" in refusal(model, picture, *PROMPTS, "--strength", 0.1)
    assert "Missing option '--target-prompt'" in refusal(model, picture, "--source-prompt", "a cat")
    Path("broken.png").write_bytes(b"not a picture")
    assert "not a picture" in refusal(model, "broken.png", *PROMPTS)
    assert "guidance_scale must be finite, got nan" in refusal(
        model, picture, *PROMPTS, "--guidance-scale", "nan"
    )
    assert not Path("outputs").exists()


@pytest.mark.parametrize("command", ["edit", "invert"])
def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(command, model, picture, monkeypatch):
    monkeypatch.setattr("dmkit.zoo.opening.open_pipeline", lambda *_: pytest.fail("opened a model"))
    given = (picture, *PROMPTS) if command == "edit" else ("--image", picture)
    result = CliRunner().invoke(app, [command, *map(str, (model, *given)), "--out", str(picture)])
    assert result.exit_code == 2
    assert "photo.png is a file; --out takes a folder." in result.stderr


def test_examples_of_the_page_run(model, picture, monkeypatch):
    """With the untrained model in the zoo as `emoji`."""
    home = Path("zoo")
    shutil.copytree(model, home / "emoji")
    (home / "emoji" / "README.md").write_text("# emoji\n\nUntrained.\n")
    monkeypatch.setattr(zoo, "_HOME", home)
    picture.rename("heart.png")
    page = Path(__file__).parents[1] / "docs" / "cli.md"
    examples = [line for line in page.read_text("utf-8").splitlines() if line.startswith("dmkit edit ")]
    assert len(examples) == 3
    for example in examples:
        dmkit(*shlex.split(example)[2:])
        assert Path("outputs/edit/comparison.png").is_file()
        shutil.rmtree("outputs")


def test_help_has_examples():
    assert dmkit("--help").count("dmkit edit emoji") == 3
