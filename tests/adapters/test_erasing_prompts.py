"""What is erased, from the released code's files and from flags."""

import logging
import random
from pathlib import Path

import pytest
import yaml
from erasing_cases import prompt
from hypothesis import given
from hypothesis import strategies as st

from dmkit.adapters.erasing.anchors import without_targets
from dmkit.adapters.erasing.configure import ErasingArguments, parse
from dmkit.adapters.erasing.official import SECTIONS, read_config
from dmkit.adapters.erasing.prompts import ErasePrompt, read_prompts
from dmkit.errors import FileFormatError

# The layout of the released `configs/*/config.yaml` and `prompt.yaml`, their spelling of numbers included.
CONFIG = """
prompts_file: "configs/snoopy/prompt.yaml"

pretrained_model:
  name_or_path: "CompVis/stable-diffusion-v1-4"
  v2: false
  v_pred: false
  clip_skip: 1

network:
  rank: 1
  alpha: 1.0

train:
  precision: float32
  noise_scheduler: "ddim"
  iterations: 3000
  batch_size: 1
  lr: 0.0003
  unet_lr: 0.0001
  text_encoder_lr: 5e-05
  optimizer_type: "AdamW8bit"
  lr_scheduler: "cosine_with_restarts"
  lr_warmup_steps: 500
  lr_scheduler_num_cycles: 3
  max_denoising_steps: 30

save:
  name: "snoopy"
  path: "output/snoopy"
  per_steps: 500
  precision: float32

logging:
  use_wandb: true
  interval: 500
  seed: 0
  generate_num: 2
  run_name: "snoopy"
  verbose: false
  prompts: ['snoopy', '', 'dog']

other:
  use_xformers: true
"""
PROMPTS = """
- target: "snoopy"
  positive: "snoopy"
  unconditional: ""
  neutral: ""
  action: "erase_with_la"
  guidance_scale: "1.0"
  resolution: 512
  batch_size: 1
  dynamic_resolution: true
  la_strength: 1000
  sampling_batch_size: 4
"""


@pytest.fixture
def official(tmp_path) -> Path:
    (tmp_path / "prompt.yaml").write_text(PROMPTS)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def test_missing_prompts_are_filled_in():
    entry = ErasePrompt("snoopy", unconditional="bad")
    assert (entry.positive, entry.neutral) == ("snoopy", "bad")
    assert ErasePrompt("snoopy", neutral="dog").neutral == "dog"
    assert ErasePrompt("snoopy", neutral="").neutral == ""
    assert ErasePrompt("x", batch_size=2, sampling_batch_size=6).anchors_per_latent == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": " "}, "target of an erasing prompt is empty"),
        ({"action": "erase_with_al"}, r"Unknown action 'erase_with_al'\. Did you mean 'erase_with_la'"),
        ({"guidance_scale": -0.1}, r"guidance_scale \(η\) of 'x' is -0\.1; it must be at least 0"),
        ({"guidance_scale": float("nan")}, "must be at least 0"),
        ({"la_strength": -1.0}, r"la_strength \(λ\) of 'x' is -1\.0; it must be at least 0"),
        ({"batch_size": 0}, "batch_size of 'x' is 0; it must be at least 1"),
        ({"batch_size": 3}, "sampling_batch_size of 'x' is 4; it must be a multiple of batch_size, 3"),
        ({"resolution": 0}, "resolution of 'x' is 0"),
    ],
)
def test_bad_prompts(changes, message):
    with pytest.raises(ValueError, match=message):
        ErasePrompt(**{"target": "x", **changes})


@given(most=st.integers(1, 16), unit=st.sampled_from([8, 16, 64]), seed=st.integers(0, 50))
def test_sizes_are_multiples_within_half_and_all(most, unit, seed):
    side = most * unit
    entry = prompt(resolution=side, dynamic_resolution=True)
    for size in entry.size(random.Random(seed), unit, (8, 8)):
        assert size % unit == 0
        assert side / 2 <= size <= side


def test_buckets_include_their_ends():
    """The released code's 512 bucket never has 512."""
    entry, choices = prompt(resolution=512, dynamic_resolution=True), random.Random(0)
    drawn = {entry.size(choices, 64, (8, 8)) for _ in range(400)}
    assert {height for height, _ in drawn} == {width for _, width in drawn} == set(range(256, 513, 64))
    assert prompt(resolution=512).size(choices, 64, (8, 8)) == (512, 512)
    assert prompt().size(choices, 8, (24, 32)) == (24, 32)


def test_official_files_are_read_unchanged(official):
    arguments, unused = read_config(official)
    assert arguments["learning_rate"] == 1e-4  # unet_lr counts
    assert arguments["prompts_file"] == str(official.parent / "prompt.yaml")
    assert {"train.optimizer_type", "train.batch_size"} <= set(unused)
    assert arguments["lr_num_cycles"] == 3
    assert not {"train.lr", "train.max_denoising_steps", "save.name", "network.alpha"} & set(unused)
    (entry,), none = read_prompts(arguments["prompts_file"])
    assert entry == ErasePrompt("snoopy", resolution=512, dynamic_resolution=True)
    assert none == []


def test_every_documented_key_is_accepted(tmp_path):
    values = {"precision": "fp16", "noise_scheduler": "lms", "prompts": ["x"], "name_or_path": "emoji"}
    content = {section: {key: values.get(key, 1) for key in keys} for section, keys in SECTIONS.items()}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    arguments, unused = read_config(tmp_path / "config.yaml")
    assert arguments["mixed_precision"] == "fp16"
    assert arguments["report_to"] == "wandb"
    named = [
        f"{section}.{key}" for section, keys in SECTIONS.items() for key, to in keys.items() if to is None
    ]
    assert set(named) <= set(unused)
    entry = {"target": 3, "use_template": True, "seed": 1, "case_number": 0, "dynamic_crops": "true"}
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump([entry]))
    (read,), unused = read_prompts(tmp_path / "prompts.yaml")
    assert read == ErasePrompt("3", action="erase", dynamic_crops=True)
    assert unused == ["case_number", "seed", "use_template"]


def test_flags_override_the_official_file_and_ignored_keys_are_named(official, caplog):
    with caplog.at_level(logging.WARNING):
        arguments, training = parse(
            ["--official_config", str(official), "--max_train_steps", "7", "--report_to", "none"], "Test."
        )
    assert (training.max_train_steps, training.learning_rate, training.output_dir) == (
        7,
        1e-4,
        "output/snoopy",
    )
    assert (training.lr_scheduler, training.save_images_epochs) == ("cosine_with_restarts", 500)
    assert arguments.adapter_name == "snoopy"
    assert arguments.pretrained_model_name_or_path == "CompVis/stable-diffusion-v1-4"
    assert arguments.validation_prompts == ["snoopy", "", "dog"]
    assert not arguments.enable_xformers_memory_efficient_attention
    assert "Without effect here" in caplog.text
    assert "train.optimizer_type" in caplog.text
    assert "other.use_xformers" in caplog.text


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("train: {iteration: 3}", ValueError, r"'iteration'\. Did you mean 'iterations'"),
        ("trian: {}", ValueError, r"Unknown section in .*'trian'\. Did you mean 'train'"),
        ("train: 3", FileFormatError, "`train` in .* should hold keys, not 3"),
        ("- 1", FileFormatError, "should hold sections"),
        ("a: [", FileFormatError, "is not valid YAML"),
        ("train: {precision: fp15}", ValueError, r"Unknown precision 'fp15'\. Did you mean 'fp16'"),
        ("prompts_file: ../../elsewhere.yaml", FileFormatError, "elsewhere.yaml, which is not beside it"),
    ],
)
def test_bad_configurations(tmp_path, content, error, message):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(error, match=message):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[]", FileFormatError, "should hold a list of prompts"),
        ("target: cat", FileFormatError, "should hold a list of prompts"),
        ("- cat", FileFormatError, "entry 1 of .* should be a mapping, not str"),
        ("- {positive: cat}", FileFormatError, "entry 1 of .* has no target"),
        ("- {target: cat, nuetral: dog}", ValueError, r"'nuetral'\. Did you mean 'neutral'"),
        (
            "- {target: cat, guidance_scale: much}",
            FileFormatError,
            "guidance_scale in entry 1 of .* is 'much'",
        ),
        ("- {target: cat, dynamic_resolution: maybe}", FileFormatError, "it should be bool"),
        ("- {target: cat}\n- {target: ''}", ValueError, "target of an erasing prompt is empty"),
    ],
)
def test_bad_prompts_files(tmp_path, content, error, message):
    (tmp_path / "prompts.yaml").write_text(content)
    with pytest.raises(error, match=message):
        read_prompts(tmp_path / "prompts.yaml")


def test_bad_flags():
    known = {"pretrained_model_name_or_path": "emoji", "target": ["cat"]}
    with pytest.raises(ValueError, match=r"Unknown --method 'esd'\. Did you mean 'esd-"):
        ErasingArguments(**known, method="esd")
    with pytest.raises(ValueError, match=r"Unknown --anchor_sampler 'gauss'\. Did you mean 'gaussian'"):
        ErasingArguments(**known, anchor_sampler="gauss")
    with pytest.raises(ValueError, match="Give --pretrained_model_name_or_path"):
        ErasingArguments(target=["cat"])
    with pytest.raises(ValueError, match="Give either --target or --prompts_file"):
        ErasingArguments(**known, prompts_file="x.yaml")


def test_anchors_that_hold_a_target_are_left_out():
    anchors = ["a blue car", "a carrot", "Cars", "a red heart", "the heart, pink background"]
    kept, dropped = without_targets(anchors, ["a car", "a pink heart"])
    assert kept == ["a carrot", "Cars", "a red heart"]
    assert dropped == ["a blue car", "the heart, pink background"]
