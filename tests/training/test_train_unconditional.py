"""`scripts/train_unconditional.py` as a user runs it: whole processes, killed, resumed, and in pairs."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from running_scripts import ENVIRONMENT, run_script, script, script_main
from safetensors.torch import load_file

COMMON = [
    *(
        "--dataset_name",
        "digits",
        "--resolution",
        "8",
        "--block_out_channels",
        "8",
        "8",
        "--norm_num_groups",
        "4",
    ),
    # A key bias has no gradient but rounding noise, which Adam at 1e-8 would blow up to whole steps.
    *("--attention_head_dim", "4", "--adam_epsilon", "1e-6"),
    *("--max_train_steps", "8", "--learning_rate", "1e-3", "--lr_warmup_steps", "4", "--use_ema", "True"),
    *("--save_images_epochs", "0", "--report_to", "none", "--dropout", "0.1"),
]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def main():
    """The script's `main`, for what needs no process of its own."""
    with script_main("train_unconditional") as main:
        yield lambda *arguments: main([*COMMON, *arguments])


@pytest.fixture(scope="module")
def straight(main, tmp_path_factory) -> Path:
    """Eight steps of batch 8 without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    main("--output_dir", str(folder), "--train_batch_size", "8", "--checkpointing_steps", "8")
    return folder


def test_kill_at_any_moment_then_resume_gives_the_same_bytes(straight, main, tmp_path):
    arguments = [
        *("--output_dir", str(tmp_path), "--train_batch_size", "8", "--checkpointing_steps", "1"),
        *("--resume_from_checkpoint", "latest"),
    ]
    dice = random.Random(0)
    for first in (1, 3):
        # A checkpoint every step: most of the time is spent writing, so most kills land inside a write.
        process = subprocess.Popen(
            [sys.executable, script("train_unconditional"), *COMMON, *arguments],
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while not (tmp_path / f"checkpoint-{first}").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = max(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert 3 <= reached < 8
    main(*arguments)
    for name in (WEIGHTS, "checkpoint-8/optimizer-main.safetensors", f"checkpoint-8/{WEIGHTS}"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes(), name
    assert not list(tmp_path.glob(".unfinished-*"))


def test_two_processes_train_what_one_trains(straight, main, tmp_path):
    two = ["--output_dir", str(tmp_path / "two"), "--train_batch_size", "4", "--checkpointing_steps", "8"]
    run_script("train_unconditional", *COMMON, *two, "--dropout", "0.0", processes=2)
    assert json.loads((tmp_path / "two/checkpoint-8/state.json").read_text())["processes"] == 2
    one = ["--output_dir", str(tmp_path / "one"), "--train_batch_size", "8", "--checkpointing_steps", "0"]
    main(*one, "--dropout", "0.0")
    alone, together = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
    assert alone.keys() == together.keys()
    assert max((alone[k] - together[k]).abs().max().item() for k in alone) < 1e-5
    # The comparison can fail: with dropout, which draws differently, the same run ends elsewhere.
    other = load_file(straight / WEIGHTS)
    assert max((alone[k] - other[k]).abs().max().item() for k in alone) > 1e-4


def test_a_recipe_gives_defaults_and_flags_override_it(main, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("prediction_type: v_prediction\nsnr_gamma: 5\nmax_train_steps: 100\nadam_beta1: 9e-1\n")
    main("--config", str(recipe), "--output_dir", str(tmp_path / "o"), "--checkpointing_steps", "0")
    from diffusers import DDIMPipeline

    pipe = DDIMPipeline.from_pretrained(tmp_path / "o")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    generator = torch.Generator().manual_seed(0)
    images = pipe(num_inference_steps=2, batch_size=2, generator=generator, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--prediction_type", "velocity"],
            "Unknown prediction type 'velocity'. Did you mean 'v_prediction'?",
        ),
        (["--dataset_name", "digit"], "Did you mean 'digits'"),
        (["--train_data_dir", "x"], "Give one of --dataset_name and --train_data_dir"),
        (["--enable_xformers_memory_efficient_attention", "True"], "pip install 'dmkit[xformers]'"),
        (["--config", "wrong.yaml"], "Unknown recipe key 'resolutoin'. Did you mean 'resolution'?"),
    ],
)
def test_bad_input_is_refused_by_name(main, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("resolutoin: 8\n")
    with pytest.raises((ValueError, ImportError)) as caught:
        main("--output_dir", "o", *arguments)
    assert message in str(caught.value)
