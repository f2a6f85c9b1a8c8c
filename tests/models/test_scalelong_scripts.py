"""ScaleLong's flags on the training scripts: killed, resumed, in two processes, measured, saved."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, UNet2DModel
from running_scripts import ENVIRONMENT, run_script, script, script_main
from safetensors.torch import load_file

from dmkit.errors import FileFormatError
from dmkit.models import ScaleLongUNet2DConditionModel, ScaleLongUNet2DModel, UViTModel
from dmkit.models.stability import load_reports

COMMON = [
    *("--dataset_name", "digits", "--resolution", "8", "--block_out_channels", "8", "16"),
    *("--norm_num_groups", "4", "--attention_head_dim", "4", "--adam_epsilon", "1e-6"),
    *("--max_train_steps", "4", "--learning_rate", "1e-3", "--lr_warmup_steps", "2", "--use_ema", "True"),
    *("--save_images_epochs", "0", "--report_to", "none"),
]
GATES = "skip_scaler.gates.8.squeeze.weight"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def main():
    with script_main("train_unconditional") as main:
        yield lambda folder, *arguments: main([*COMMON, "--output_dir", str(folder), *arguments])


@pytest.fixture(scope="module")
def learned(main, tmp_path_factory) -> Path:
    """Four steps of learnable scaling with dropout, without interruption and without measuring."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("learned")
    main(folder, "--scalelong", "ls", "--dropout", "0.1", "--checkpointing_steps", "4")
    return folder


def test_the_default_is_diffusers_own_model(main, tmp_path):
    main(tmp_path, "--checkpointing_steps", "4")
    assert json.loads((tmp_path / "unet/config.json").read_text())["_class_name"] == "UNet2DModel"
    assert not [name for name in load_file(tmp_path / WEIGHTS) if "skip" in name]
    state = json.loads((tmp_path / "checkpoint-4/state.json").read_text())
    assert "scalelong" not in state["settings"]


def test_kill_and_resume_give_the_same_bytes_while_measuring(learned, main, tmp_path):
    flags = ["--scalelong", "ls", "--dropout", "0.1", "--checkpointing_steps", "1", "--stability_steps", "2"]
    flags += ["--resume_from_checkpoint", "latest"]
    process = subprocess.Popen(
        [sys.executable, script("train_unconditional"), *COMMON, "--output_dir", str(tmp_path), *flags],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint-1").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / WEIGHTS).exists()
    main(tmp_path, *flags)
    for name in (WEIGHTS, "checkpoint-4/optimizer-main.safetensors", f"checkpoint-4/{WEIGHTS}"):
        assert (tmp_path / name).read_bytes() == (learned / name).read_bytes(), name
    reports = load_reports(tmp_path / "stability")
    assert sorted(reports) == [0, 2]
    assert all(0 < g < 1 for report in reports.values() for g in report.coefficients)


def test_the_gates_are_trained_saved_and_found_again(learned):
    pipe = DiffusionPipeline.from_pretrained(learned)
    assert type(pipe.unet) is ScaleLongUNet2DModel
    assert pipe.unet.config.skip_scaling == "ls"
    trained = load_file(learned / "checkpoint-4" / WEIGHTS)
    averaged = load_file(learned / WEIGHTS)
    # Adam moves every weight that has a gradient by about the learning rate a step.
    assert (trained[GATES] - averaged[GATES]).abs().max() > 1e-5
    plain = UNet2DModel.from_pretrained(learned / "unet")
    assert all(torch.equal(value, averaged[name]) for name, value in plain.state_dict().items())


def test_another_scaling_cannot_be_resumed(main, tmp_path):
    scaled = ["--scalelong", "cs", "--kappa", "0.8", "--scalelong_index", "level"]
    main(tmp_path, *scaled, "--max_train_steps", "2", "--checkpointing_steps", "2")
    config = json.loads((tmp_path / "unet/config.json").read_text())
    assert (config["skip_scaling"], config["skip_kappa"], config["skip_index"]) == ("cs", 0.8, "level")
    for flags in ([*scaled[:2], "--kappa", "0.7"], []):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(FileFormatError, match="scalelong was"):
            main(tmp_path, *flags, "--resume_from_checkpoint", "latest", "--checkpointing_steps", "2")


@pytest.mark.parametrize(
    "method",
    [
        ["--scalelong", "ls"],
        ["--scalelong", "cs", "--ant_clusters", "3", "--mtl", "nash"],
        ["--ant_clusters", "3", "--mtl", "pcgrad", "--ant_cost", "snr"],
        ["--ant_clusters", "3", "--mtl", "uw"],
    ],
    ids=["ls", "cs and nash", "pcgrad", "uw"],
)
def test_two_processes_train_what_one_trains(main, tmp_path, method):
    flags = [*method, "--stability_steps", "2", "--checkpointing_steps", "0"]
    two = ["--output_dir", str(tmp_path / "two"), "--train_batch_size", "4"]
    run_script("train_unconditional", *COMMON, *two, *flags, processes=2)
    main(tmp_path / "one", *flags, "--train_batch_size", "8")
    alone, together = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
    assert alone.keys() == together.keys()
    assert (GATES in alone) == ("ls" in method)
    assert max((alone[k] - together[k]).abs().max().item() for k in alone) < 1e-5
    assert sorted(load_reports(tmp_path / "two" / "stability")) == [0, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scalelong", "sl"], "Unknown mode of skip scaling 'sl'. Did you mean 'ls'?"),
        (["--scalelong", "cs", "--kappa", "1.5"], "kappa is 1.5; it must be in (0, 1]"),
        (["--scalelong", "cs", "--scalelong_index", "block"], "Known: level, skip"),
        (["--stability_steps", "-1"], "--stability_steps is -1"),
        (["--kappa", "0.5"], "--kappa does nothing without --scalelong cs"),
        (["--scalelong", "ls", "--kappa", "0.5"], "--kappa does nothing without --scalelong cs"),
        (["--scalelong_index", "level"], "--scalelong_index does nothing without --scalelong cs"),
        (["--scalelong", "cs", "--scalelong_init_gate", "0.98"], "does nothing without --scalelong ls"),
        (["--scalelong", "ls", "--scalelong_init_gate", "1"], "init_gate is 1.0; it must be between 0 and 1"),
    ],
)
def test_bad_flags_are_refused_by_name(main, flags, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        main(tmp_path, *flags)
    assert message in str(caught.value)


def test_a_trained_model_is_hardly_changed_by_gates_that_start_near_one(main, tmp_path):
    main(tmp_path, "--scalelong", "ls", "--scalelong_init_gate", "0.98", "--checkpointing_steps", "0")
    config = json.loads((tmp_path / "unet/config.json").read_text())
    assert config["skip_init_gate"] == 0.98
    assert load_file(tmp_path / WEIGHTS)["skip_scaler.gates.8.excite.bias"].min() > 3


def test_a_config_makes_a_model_of_its_own_class(main, tmp_path):
    """A U-ViT, which the flags can scale, and a model whose config has the scaling."""
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "num_layers": 4}
    uvit = UViTModel(**shape, num_attention_heads=2, attention_head_dim=8)
    uvit.save_config(tmp_path / "uvit")
    given = ["--model_config_name_or_path", str(tmp_path / "uvit"), "--checkpointing_steps", "0"]
    main(tmp_path / "scaled", *given, "--scalelong", "ls")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "scaled")
    assert type(pipe.unet) is UViTModel
    assert pipe.unet.config.num_layers == 4
    assert pipe.unet.config.skip_scaling == "ls"
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    again = ["--model_config_name_or_path", str(tmp_path / "scaled" / "unet"), "--checkpointing_steps", "0"]
    main(tmp_path / "again", *again)
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == load_file(tmp_path / "scaled" / WEIGHTS).keys()
    with pytest.raises(ValueError, match="This UViTModel has skip scaling already: ls"):
        main(tmp_path / "twice", *again, "--scalelong", "ls")
    with pytest.raises(ValueError, match="--scalelong_index level is for UNets: a U-ViT has no levels"):
        main(tmp_path / "level", *given, "--scalelong", "cs", "--scalelong_index", "level")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match=r"'AutoencoderKL'.*Known: ScaleLongUNet2DModel, UNet2DModel, UViT"):
        main(tmp_path / "other", "--model_config_name_or_path", str(tmp_path / "config.json"))


def test_text_to_image_takes_the_flags_too(text_pipe, tmp_path):
    from PIL import Image

    text_pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    lines = []
    for k in range(4):
        Image.new("RGB", (16, 16), (60 * k, 80, 200)).save(tmp_path / "pictures" / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "text": "abc"[: k + 1]}))
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    with script_main("train_text_to_image") as main, pytest.warns(UserWarning, match="trained without skip"):
        main(
            [
                *("--pretrained_model_name_or_path", str(tmp_path / "base"), "--resolution", "16"),
                *("--dataset_name", str(tmp_path / "pictures"), "--cache_dir", str(tmp_path / "cache")),
                *("--output_dir", str(tmp_path / "out"), "--max_train_steps", "2", "--report_to", "none"),
                *("--train_batch_size", "2", "--checkpointing_steps", "0", "--save_images_epochs", "0"),
                *("--scalelong", "ls", "--stability_steps", "1", "--learning_rate", "1e-3"),
            ]
        )
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe.unet) is ScaleLongUNet2DConditionModel
    assert sorted(load_reports(tmp_path / "out" / "stability")) == [0, 1]
