"""The `dmkit` command, end to end: what it writes, what it refuses, what it imports."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cli_scaling import DATA, SCORES, runs  # noqa: F401
from test_evaluation import Toy
from typer.testing import CliRunner

from dmkit import __version__, data, zoo
from dmkit.cli import _options, app
from dmkit.images import save_png, to_pil
from dmkit.schedulers import BDIALatentPair, encode, reconstruct

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    """An empty folder to work in, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def small_zoo(workdir, tiny_pipeline, monkeypatch):
    """A zoo whose `fashion` is the untrained 8x8 pipeline, measured against the digits."""
    home = workdir / "zoo"
    shutil.copytree(tiny_pipeline, home / "fashion")
    (home / "fashion" / "README.md").write_text("---\ndataset: digits\n---\n# fashion\n\nUntrained.\n")
    example = to_pil(data.load("digits", split="test")[0]["images"])
    save_png(example, home / "fashion" / "examples" / "00-digit.png")
    monkeypatch.setattr(zoo, "_HOME", home)
    return home


@pytest.fixture
def quick_features(monkeypatch):
    """Eight projections of the pixels in place of EfficientNet-Lite0."""
    monkeypatch.setattr("dmkit.metrics.features.EfficientNetLite0", Toy)


@pytest.fixture
def fashion():
    """The trained model that ships; tests that look at what only it can do are skipped until it does."""
    if "fashion" not in {entry.name for entry in zoo.list()}:
        pytest.skip("the zoo has no `fashion` yet")


@pytest.fixture
def picture(workdir):
    path = workdir / "boot.png"
    to_pil(data.load("digits", split="test", resolution=20)[1]["images"]).save(path)
    return path


@pytest.fixture
def tables(runs):  # noqa: F811
    """`runs.csv` of two mixtures, `results.csv` of one curve."""
    rows = [f"{d:g},{score}" for d, score in zip(DATA, SCORES, strict=True)]
    (runs.parent / "results.csv").write_text("D_p,bleu\n" + "\n".join(rows))


def dmkit(*arguments) -> str:
    """Runs the command; returns what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments) -> str:
    """Runs a command that must fail; returns its one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("dmkit: ")
    return lines[0]


def parameters(path) -> dict:
    return json.loads(Image.open(path).text["parameters"])


# -- sample --------------------------------------------------------------------------------------------------


def test_pictures_carry_all_that_made_them(tiny_pipeline):
    said = dmkit(
        *("sample", tiny_pipeline, "--scheduler", "ts-ddim", "--steps", 4, "--num-images", 3, "--seed", 7),
        *("--time-shift-window", 40, "--set", "clip_sample=false", "--out", "made"),
    )
    assert said == "3 images for each of ts-ddim in made; together in made/grid.png\n"
    files = sorted(Path("made/ts-ddim").iterdir())
    assert [file.name for file in files] == ["000007.png", "000008.png", "000009.png"]
    about = parameters(files[1])
    assert (about["model"], about["sampler"], about["steps"]) == (str(tiny_pipeline), "ts-ddim", 4)
    assert about["seed"] == 8
    assert about["scheduler"]["time_shift_window"] == 40
    assert about["scheduler"]["clip_sample"] is False
    assert about["scheduler"]["beta_end"] == 0.02
    assert set(about["versions"]) == {"dmkit", "diffusers", "torch"}
    whole = parameters("made/grid.png")
    assert (whole["samplers"], whole["seed"], whole["num_images"]) == (["ts-ddim"], 7, 3)


def test_what_a_picture_says_is_enough_to_make_it_again(tiny_pipeline):
    dmkit("sample", tiny_pipeline, "--scheduler", "es-dpm++", "--steps", 5, "--num-images", 4, "--out", "a")
    about = parameters("a/es-dpm++/000002.png")
    dmkit(
        *("sample", about["model"], "--scheduler", about["sampler"], "--steps", about["steps"]),
        *("--seed", about["seed"], "--num-images", 1, "--out", "b"),
        *(x for k, v in about["scheduler"].items() if v is not None for x in ("--set", f"{k}={v}")),
    )
    first, second = (Image.open(f"{folder}/es-dpm++/000002.png") for folder in "ab")
    one, other = (torch.tensor(list(image.tobytes())) for image in (first, second))
    assert (one - other).abs().max() <= 1  # batches of other sizes round differently


def test_same_seed_same_bytes(tiny_pipeline):
    for out in ("a", "b"):
        dmkit("sample", tiny_pipeline, "--scheduler", "ddpm", "--steps", 3, "--num-images", 5, "--out", out)
    files = sorted(path.relative_to("a") for path in Path("a").rglob("*.png"))
    assert len(files) == 6
    for file in files:
        assert ("a" / file).read_bytes() == ("b" / file).read_bytes()
    assert Path("a/ddpm/000000.png").read_bytes() != Path("a/ddpm/000001.png").read_bytes()


def test_compared_samplers_share_seeds_and_take_the_settings_they_know(tiny_pipeline):
    dmkit(
        *("sample", tiny_pipeline, "--compare", "ddim,ts-ddim,dpm++", "--steps", 4, "--num-images", 3),
        *("--time-shift-window", 0, "--batch-size", 2, "--out", "made"),
    )
    assert parameters("made/grid.png")["samplers"] == ["ddim", "ts-ddim", "dpm++"]
    for k in range(3):
        ddim, ts, dpm = (Image.open(f"made/{name}/{k:06d}.png") for name in ("ddim", "ts-ddim", "dpm++"))
        assert ddim.tobytes() == ts.tobytes() != dpm.tobytes()
    assert parameters("made/ts-ddim/000000.png")["scheduler"]["time_shift_window"] == 0
    assert "time_shift_window" not in parameters("made/ddim/000000.png")["scheduler"]


def test_a_label_for_each_image_reaches_the_network(tiny_pipeline):
    options = ("--time-shift-window", 60, "--time-shift-cutoff", 0, "--num-images", 4)
    for scope in ("batch", "sample"):
        dmkit(
            *("sample", tiny_pipeline, "--scheduler", "ts-ddim", *options),
            *("--set", f"time_shift_scope={scope}", "--out", scope),
        )
    pixels = [Image.open(f"{scope}/grid.png").tobytes() for scope in ("batch", "sample")]
    assert pixels[0] != pixels[1]


class TextToImage:
    """Stands for a text-to-image pipeline; keeps what it was called with."""

    def __init__(self, scheduler):
        self.scheduler, self.tokenizer, self.calls = scheduler, object(), []
        self.components = {"scheduler": scheduler, "tokenizer": self.tokenizer}

    def set_progress_bar_config(self, **_):
        pass

    def to(self, device):
        return self

    def __call__(self, prompt, generator, num_inference_steps, callback_on_step_end, **arguments):
        self.calls.append({"prompt": prompt, "scheduler": type(self.scheduler).__name__, **arguments})
        images = torch.stack([torch.rand(3, 8, 8, generator=one) for one in generator])
        return type("Output", (), {"images": images})


def test_text_goes_to_the_pipeline(tiny_pipeline, monkeypatch):
    pipe = TextToImage(zoo.load(str(tiny_pipeline)).scheduler)
    monkeypatch.setattr(zoo, "load", lambda model: pipe)
    dmkit(
        *(
            "sample",
            "some/model",
            "--scheduler",
            "ddim",
            "--num-images",
            3,
            "--batch-size",
            2,
            "--out",
            "made",
        ),
        *("--prompt", "a boot", "--negative-prompt", "a bag", "--guidance-scale", 3),
    )
    assert [call["prompt"] for call in pipe.calls] == [["a boot"] * 2, ["a boot"]]
    assert [call["negative_prompt"] for call in pipe.calls] == [["a bag"] * 2, ["a bag"]]
    assert [call["guidance_scale"] for call in pipe.calls] == [3, 3]
    assert {call["scheduler"] for call in pipe.calls} == {"DDIMScheduler"}
    about = parameters("made/ddim/000002.png")
    assert (about["prompt"], about["negative_prompt"], about["guidance_scale"]) == ("a boot", "a bag", 3)


# -- invert --------------------------------------------------------------------------------------------------


def test_invert_writes_a_pair_that_runs_back(tiny_pipeline, picture):
    said = dmkit("invert", tiny_pipeline, "--image", picture, "--steps", 8, "--out", "made")
    pipe = zoo.load(str(tiny_pipeline))
    original = encode(pipe, Image.open(picture).resize((8, 8), Image.Resampling.LANCZOS))
    pair = BDIALatentPair.from_pretrained("made")
    assert len(pair.timesteps) == 8
    error = (reconstruct(pipe, pair).latents - original).abs().max()
    assert error < 1e-10
    about = parameters("made/reconstruction.png")
    assert about["pixels_max_abs"] == pytest.approx(float(error), abs=1e-12)
    assert about["pixels_psnr_db"] > 100
    assert (about["method"], about["gamma"], about["image"]) == ("bdia", 1.0, "boot.png")
    assert Image.open("made/reconstruction.png").tobytes() == to_pil(original[0]).tobytes()
    assert Image.open("made/comparison.png").width > 2 * 8
    assert re.search(r"pixels: max error .*e-1\d, PSNR \d{3}\.\d dB", said)


def test_bitwise_inversion_is_exact_and_ddim_is_not(tiny_pipeline, picture):
    command = ("invert", tiny_pipeline, "--image", picture, "--steps", 8)
    exact = dmkit(*command, "--bitwise")
    assert "max error 0, PSNR inf dB" in exact
    assert "bit for bit the same: yes" in exact
    about = parameters("outputs/invert/reconstruction.png")
    assert (about["bit_equal"], about["pixels_psnr_db"]) == (True, "inf")
    assert "bit for bit the same: no" in dmkit(*command, "--method", "ddim")
    about = parameters("outputs/invert/reconstruction.png")
    assert about["pixels_psnr_db"] < 100
    assert "gamma" not in about


def test_small_gammas_are_inverted_on_request(tiny_pipeline, picture):
    command = ("invert", tiny_pipeline, "--image", picture, "--steps", 14, "--gamma", 0.5)
    assert "more than max_amplification=1000" in refusal(*command)
    assert "PSNR" in dmkit(*command, "--max-amplification", 1e5)


# -- evaluate and tune ---------------------------------------------------------------------------------------


def test_evaluate_writes_table_json_and_plot(small_zoo):
    pytest.importorskip("efficientnet_lite_pytorch")
    said = dmkit("evaluate", "fashion", "--schedulers", "ddim,dpm++", "--steps", 3, "--num-images", 50)
    results = json.loads(Path("outputs/evaluate/results.json").read_text())
    rows = results["rows"]
    assert [(row["sampler"], row["steps"]) for row in rows] == [("ddim", 3), ("dpm++", 3)]
    columns = [
        *("sampler", "steps", "frechet_efficientnet_lite0"),
        *("kid_efficientnet_lite0", "kid_efficientnet_lite0_stderr"),
    ]
    assert list(rows[0]) == columns
    assert results["about"]["reference"] == "digits:test"
    assert results["about"]["num_images"] == 50
    table = Path("outputs/evaluate/results.md").read_text()
    assert table in said
    assert table.splitlines()[0] == f"| {' | '.join(columns)} |"
    assert table.splitlines()[2].startswith(f"| ddim | 3 | {rows[0]['frechet_efficientnet_lite0']:.4g} |")
    assert Image.open("outputs/evaluate/results.png").format == "PNG"
    assert [path.name for path in Path("outputs/evaluate").iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_evaluation_keeps_what_it_has(small_zoo, quick_features, monkeypatch):
    done = iter([{"frechet_toy": 3.0}])

    def once(*_, **__):
        for figures in done:
            return figures
        raise KeyboardInterrupt

    monkeypatch.setattr("dmkit.evaluation.quality", once)
    result = CliRunner().invoke(app, ["evaluate", "fashion", "--steps", "5", "--num-images", "50"])
    assert result.exit_code == 130
    rows = json.loads(Path("outputs/evaluate/results.json").read_text())["rows"]
    assert rows == [{"sampler": "ddim", "steps": 5, "frechet_toy": 3.0}]


def test_tune_finds_the_best_of_its_grid(small_zoo, quick_features):
    said = dmkit(
        *("tune", "time-shift", "fashion", "--steps", 4, "--windows", "0,80", "--cutoffs", "0,auto"),
        *("--num-images", 50),
    )
    result = json.loads(Path("outputs/tune/time-shift.json").read_text())
    assert [(row["time_shift_window"], row["time_shift_cutoff"]) for row in result["rows"]] == [
        *((0, 0), (80, 0), (80, "auto"))
    ]
    lowest = min(result["rows"], key=lambda row: row.pop("score"))
    assert result["best"] == lowest
    assert f"best: --time-shift-window {lowest['time_shift_window']}" in said
    assert result["about"]["reference"] == "digits:test"
    # Window 0 is the plain sampler.
    dmkit("evaluate", "fashion", "--schedulers", "ddim", "--steps", 4, "--num-images", 50)
    (row,) = json.loads(Path("outputs/evaluate/results.json").read_text())["rows"]
    scores = [row["score"] for row in json.loads(Path("outputs/tune/time-shift.json").read_text())["rows"]]
    assert scores[0] == pytest.approx(row["frechet_toy"], rel=1e-6)
    assert len(set(scores)) > 1


def test_every_metric_has_its_column_and_its_plot(small_zoo, quick_features):
    dmkit(
        *("evaluate", "fashion", "--schedulers", "ts-ddim", "--steps", "4,2", "--num-images", 50),
        *("--metrics", "diversity,precision_recall,kid", "--set", "time_shift_scope=sample", "--seed", 9),
    )
    results = json.loads(Path("outputs/evaluate/results.json").read_text())
    assert [row["steps"] for row in results["rows"]] == [4, 2]
    assert set(results["rows"][0]) == {
        *("sampler", "steps", "kid_toy", "kid_toy_stderr", "precision_toy", "recall_toy"),
        *("diversity_toy", "diversity_toy_reference"),
    }
    assert results["about"]["settings"] == {"time_shift_scope": "sample"}
    width, height = Image.open("outputs/evaluate/results.png").size
    assert width == 4 * 5 / 4 * height  # kid, precision, recall, diversity, each 5 by 4


# -- models, demo, docs --------------------------------------------------------------------------------------


def test_models_lists_models_and_samplers(small_zoo):
    said = dmkit("models")
    assert re.search(r"fashion\W+DDPMPipeline\W+Untrained\.", said)
    for name in ("ddim", "dpm++", "obelm", "bdia-flow", "ts-es-ddim"):
        assert f" {name}" in said


def test_demo_on_a_small_model(small_zoo):
    said = dmkit("demo", "--steps", 5, "--num-images", 4)
    psnr = [float(x) for x in re.findall(r"PSNR (-?[\d.]+|inf) dB", said)]
    assert psnr[1] > psnr[0] + 80
    assert "Look at outputs/demo/samples.png and outputs/demo/inversion.png." in said
    assert Image.open("outputs/demo/samples.png").width > 2 * 16
    assert parameters("outputs/demo/inversion.png")["image"] == "00-digit.png"


def test_demo_on_the_shipped_model(fashion):
    said = dmkit("demo", "--num-images", 4)
    psnr = [float(x) for x in re.findall(r"PSNR (-?[\d.]+|inf) dB", said)]
    assert psnr[1] >= 100
    assert psnr[1] >= psnr[0] + 80


EXAMPLES = [
    command
    for block in re.findall(r"```bash\n(.*?)```", DOCS.read_text("utf-8"), re.S)
    for command in block.splitlines()
    if command.startswith("dmkit ")
]


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_of_the_page_run(command, small_zoo, quick_features, picture, tables):
    dmkit(*shlex.split(command)[1:])


def test_the_page_shows_every_command():
    assert {shlex.split(command)[1] for command in EXAMPLES} == {
        *("models", "sample", "invert", "evaluate", "tune", "scaling", "demo")
    }


@pytest.mark.parametrize(
    "command",
    ["models", "sample", "invert", "evaluate", "tune time-shift", "scaling fit", "scaling compare", "demo"],
)
def test_help_has_examples(command):
    said = dmkit(*command.split(), "--help")
    assert "Usage:" in said
    assert f"dmkit {command}" in said.partition("Example")[2]


def test_help_imports_nothing_heavy():
    code = (
        "import sys, contextlib\nfrom dmkit.cli import app\n"
        "for command in ('', 'sample', 'tune time-shift'):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
        "        app([*command.split(), '--help'])\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "diffusers", "transformers", "numpy", "scipy", "PIL", "matplotlib", "datasets"}
    assert "typer" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


# -- what is refused -----------------------------------------------------------------------------------------

REFUSED = {
    "sample": [
        ("--steps 0", r"Invalid value for '--steps'"),
        ("--stepz 3", r"No such option: --stepz"),
        ("--scheduler ts-dim", r"Unknown sampler 'ts-dim'\. Did you mean 'ts-ddim'\?"),
        ("--set gama=1 --scheduler bdia", r"Unknown setting of bdia 'gama'\. Did you mean 'gamma'\?"),
        ("--time-shift-window 40", r"Unknown setting of ddim 'time_shift_window'"),
        ("--compare ddim,ddpm --time-shift-window 40", r"Unknown setting of ddim, ddpm 'time_shift_window'"),
        ("--compare ,", r"Which sampler\? Known: "),
        ("--set gamma", r"--set takes KEY=VALUE, not 'gamma'"),
        ("--set gamma=[1", r"'\[1' cannot be read as a value"),
        ("--scheduler bdia --set gamma=2", r"gamma must lie in \[0, 1\], got 2"),
        ("--scheduler bdia --set gamma=half", r"gamma must lie in \[0, 1\], got 'half'"),
        ("--set beta_start=low", r"ddim cannot be built with beta_start='low': .*linspace"),
        ("--scheduler f-pndm --steps 3", r"f-pndm takes at least 4 steps, not 3"),
        ("--scheduler bdia --steps 1", r"bdia at 1 steps: num_inference_steps must be at least 2"),
        (
            "--scheduler flow",
            r"'flow' is for flow-matching noise schedules; this model's is variance-preserving",
        ),
        ("--prompt boot", r"DDPMPipeline is unconditional and takes no prompt"),
        ("--device nowhere", r"--device nowhere cannot be used"),
        ("--out boot.png", r"boot\.png is a file; --out takes a folder"),
    ],
    "invert --image boot.png": [
        ("--steps 1", r"Invalid value for '--steps'"),
        ("--method bdai", r"Unknown method 'bdai'\. Did you mean 'bdia'\?"),
        ("--gamma 0.5", r"max_amplification=1000"),
        ("--gamma 0.9 --bitwise", r"reversible='bitwise' needs gamma=1"),
        ("--method edict --bitwise", r"reversible='bitwise' is BDIA's"),
        ("--strength 0.01", r"strength=0\.01 of 50 steps covers 0 level"),
        ("--prompt boot", r"is unconditional: it takes no prompt"),
        ("--guidance-scale 3", r"DDPMPipeline takes no guidance_scale, got 3\.0"),
    ],
    "evaluate --num-images 50": [
        ("", r"has no card \(README\.md\).*\(--reference\)"),
        ("--reference digit", r"Unknown data set 'digit'\. Did you mean 'digits'\?"),
        ("--reference digits:tset", r"Unknown split of digits 'tset'\. Did you mean 'test'\?"),
        ("--reference no/such/folder", r"There is no folder no/such/folder"),
        ("--reference fashion-mnist", r"Fashion-MNIST is not on this machine.*`make data`"),
        ("--reference emoji-google", r"`make data`"),
        ("--reference digits --metrics fd", r"Unknown metric 'fd'\. Did you mean 'kid'\?"),
        ("--reference digits --steps 5,x", r"--steps takes whole numbers of at least 1.*not '5,x'"),
        ("--reference digits --schedulers f-pndm --steps 5,3", r"f-pndm takes at least 4 steps, not 3"),
        ("--num-images 10", r"Invalid value for '--num-images'"),
    ],
    "tune time-shift --reference digits": [
        ("--scheduler ddim", r"'ddim' has no Time-Shift to tune"),
        ("--windows wide", r"--windows takes numbers of at least 0, or auto"),
        ("--windows 0,900", r"ts-ddim at 10 steps: time_shift_window=900"),
        ("--cutoffs 200,2000", r"time_shift_cutoff must"),
    ],
}


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [(command, *case) for command, cases in REFUSED.items() for case in cases],
)
def test_refusals_are_one_line(command, options, message, tiny_pipeline, picture, workdir, monkeypatch):
    monkeypatch.setenv("DMKIT_DATA", str(workdir / "nothing"))
    monkeypatch.setattr("dmkit.data.fashion.SYSTEM_FOLDER", workdir / "nothing")
    assert re.search(message, refusal(*command.split(), tiny_pipeline, *options.split()))
    assert not [path for path in (workdir / "outputs").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("fashoin", r"Unknown zoo model 'fashoin'\. Did you mean 'fashion'\?"),
        ("empty", r"empty is not a Diffusers pipeline: it has no model_index\.json"),
        ("foreign", r"The pipeline in foreign cannot be loaded: .*NoSuchPipeline"),
        ("truncated", r"The pipeline in truncated cannot be loaded"),
        ("deeper", r"The pipeline deeper lacks weights that its configuration calls for"),
        ("owner/name", r"There is no folder owner/name, and from the hub it cannot be had: "),
        ("no/such/folder", r"There is no folder no/such/folder\.$"),
        ("./nowhere", r"There is no folder \./nowhere\.$"),
    ],
)
def test_models_that_cannot_be_loaded(model, message, small_zoo, workdir):
    for folder in ("foreign", "truncated", "deeper"):
        shutil.copytree(small_zoo / "fashion", workdir / folder)
    (workdir / "empty").mkdir()
    index = workdir / "foreign" / "model_index.json"
    index.write_text(index.read_text().replace("DDPMPipeline", "NoSuchPipeline"))
    weights = workdir / "truncated" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    config = workdir / "deeper" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    result = CliRunner().invoke(app, ["sample", model], catch_exceptions=False)
    assert result.exit_code == 2
    # Diffusers says more on its own account; the last line is ours.
    assert re.search(f"^dmkit: .*{message}", result.stderr.splitlines()[-1])


def test_other_pipelines_are_named(tiny_pipeline, monkeypatch):
    pipe = zoo.load(str(tiny_pipeline))
    parts = {**pipe.components, "vqvae": None}
    monkeypatch.setattr(type(pipe), "components", property(lambda _: parts))
    assert "DDPMPipeline is neither text-to-image nor" in refusal("sample", tiny_pipeline)


def test_images_that_are_not_finite_are_refused(tiny_pipeline, workdir):
    pipe = zoo.load(str(tiny_pipeline))
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    pipe.save_pretrained("broken")
    assert "ddim at 10 steps gave images with NaN or infinite values" in refusal("sample", "broken")
    assert not list(workdir.rglob("*.png"))


@pytest.mark.parametrize("content", [b"not a picture", None])
def test_pictures_that_cannot_be_read(content, tiny_pipeline, picture):
    content = picture.read_bytes()[:100] if content is None else content
    Path("bad.png").write_bytes(content)
    assert "bad.png is not a picture that can be read" in refusal(
        "invert", tiny_pipeline, "--image", "bad.png"
    )
    assert "does not exist" in refusal("invert", tiny_pipeline, "--image", "missing.png")


def test_version():
    assert dmkit("--version") == f"dmkit {__version__}\n"


def test_the_command_itself_exits_with_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "dmkit", "sample", "x", "--set", "y"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dmkit: --set takes KEY=VALUE, not 'y'.\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("40", 40),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("false", False),
        ("auto", "auto"),
        ("null", None),
        ("[1, 2]", [1, 2]),
    ],
)
def test_settings_are_read_as_values(text, value):
    found = _options.settings([f"key={text}"], window=None, cutoff=text)
    assert found == {"key": value, "cutoff": value}
    assert type(found["key"]) is type(value)


def test_a_one_step_model_is_sampled_without_guidance(small_zoo, text_pipe, recwarn):
    text_pipe.save_pretrained(small_zoo / "student")
    card = "---\ntags: [one-step]\ndataset: digits\n---\n# student\n\nUntrained.\n"
    (small_zoo / "student" / "README.md").write_text(card)
    common = ("sample", "student", "--prompt", "a cat", "--steps", 2, "--num-images", 1)
    dmkit(*common, "--out", "a")
    assert parameters("a/ddim/000000.png")["guidance_scale"] == 1.0
    assert not [w for w in recwarn if "guidance" in str(w.message)]
    with pytest.warns(
        UserWarning, match="student was distilled to be sampled without guidance; guidance 3 spoils"
    ):
        dmkit(*common, "--guidance-scale", 3, "--out", "b")
    assert parameters("b/ddim/000000.png")["guidance_scale"] == 3.0
