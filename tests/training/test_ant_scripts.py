"""The ANT flags of both training scripts, and the measurement of affinity, as a user runs them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from running_scripts import script_main
from safetensors.torch import load_file
from tiny_models import SIDE, pictures, tiny_text_to_image

from dmkit.images import to_pil
from dmkit.training.ant.affinity import Affinity
from dmkit.training.ant.clustering import TimestepClusters
from dmkit.training.ant.configure import AntArguments

COMMON = [
    *("--resolution", "8", "--max_train_steps", "3", "--train_batch_size", "7", "--use_ema", "True"),
    *("--lr_warmup_steps", "1", "--save_images_epochs", "0", "--report_to", "none"),
    *("--checkpointing_steps", "2"),
]
DIGITS = [
    *("--dataset_name", "digits", "--block_out_channels", "8", "8", "--norm_num_groups", "4"),
    *("--attention_head_dim", "4"),
]


@pytest.fixture(scope="module")
def train():
    with script_main("train_unconditional") as main:
        yield lambda folder, *flags: main([*COMMON, *DIGITS, "--output_dir", str(folder), *flags])


@pytest.mark.parametrize(
    ("flags", "starts"),
    [
        (["--ant_clusters", "5", "--mtl", "pcgrad"], (0, 200, 400, 600, 800)),
        (["--ant_clusters", "5", "--ant_cost", "snr", "--mtl", "uw"], (0, 88, 332, 598, 815)),
        (
            ["--ant_clusters", "5", "--ant_cost", "snr", "--ant_min_size", "100", "--mtl", "nash"],
            (0, 100, 346, 606, 819),
        ),
    ],
)
def test_flags_train_a_plain_pipeline(train, tmp_path, flags, starts):
    train(tmp_path, *flags)
    assert TimestepClusters.load(tmp_path / "clusters.json").starts == starts
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe).__name__ == "DDPMPipeline"
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    settings = json.loads((tmp_path / "checkpoint-2" / "state.json").read_text())["settings"]
    assert settings["clusters"] == list(starts)


def test_a_script_goes_on_exactly(train, tmp_path):
    flags = ["--ant_clusters", "5", "--mtl", "nash", "--mtl_update_every", "3"]
    train(tmp_path, *flags)
    done = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "checkpoint-3").rename(tmp_path / "old")  # as if killed after step 2
    train(tmp_path, *flags, "--resume_from_checkpoint", "latest")
    again = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(done[name], again[name]) for name in done)


@pytest.fixture(scope="module")
def affinity(train, tmp_path_factory) -> Path:
    """Measured on two checkpoints of a training without clusters."""
    room = tmp_path_factory.mktemp("affinity")
    train(room / "model")
    assert not (room / "model" / "clusters.json").exists()
    with script_main("measure_affinity") as main:
        main(
            str(room / "model"),
            "digits",
            output=room / "affinity.safetensors",
            checkpoint=[room / "model" / name / "unet" for name in ("checkpoint-2", "checkpoint-3")],
            plot=room / "affinity.png",
            resolution=8,
            num_images=20,
            batch_size=100,  # more than there are: halved, as two halves are compared
            group_size=125,
        )
    assert (room / "affinity.png").exists()
    return room / "affinity.safetensors"


def test_one_image_has_no_halves(affinity):
    with (
        script_main("measure_affinity") as main,
        pytest.raises(ValueError, match="two halves of the images, but digits gave 1"),
    ):
        main(str(affinity.parent / "model"), "digits", resolution=8, num_images=1)


def test_measured_affinity_makes_clusters(train, affinity, tmp_path):
    found = Affinity.load(affinity)
    assert found.cosines.shape == (8, 8)
    assert (found.cosines == found.cosines.T).all()
    cost = ["--ant_cost", "affinity", "--ant_affinity", str(affinity)]
    train(tmp_path, "--ant_clusters", "3", *cost, "--mtl", "uw")
    clusters = TimestepClusters.load(tmp_path / "clusters.json")
    assert len(clusters) == 3
    with pytest.raises(ValueError, match=r"is of 1000 timesteps, the schedule of 500"):
        train(tmp_path / "other", "--ant_clusters", "3", *cost, "--ddpm_num_steps", "500")


def test_text_to_image_trains_with_clusters(tmp_path):
    tiny_text_to_image().save_pretrained(tmp_path / "start")
    (tmp_path / "pictures").mkdir()
    lines = []
    for k, item in enumerate(pictures(12).__getitems__(range(12))):
        to_pil(item["images"]).save(tmp_path / "pictures" / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "text": item["captions"]}))
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    flags = [
        *("--dataset_name", str(tmp_path / "pictures"), "--cache_dir", str(tmp_path / "cache")),
        *("--pretrained_model_name_or_path", str(tmp_path / "start")),
        *("--ant_clusters", "3", "--ant_cost", "snr", "--mtl", "nash", "--mtl_update_every", "2"),
    ]
    with script_main("train_text_to_image") as main:
        main([*COMMON, "--resolution", str(SIDE), *flags, "--output_dir", str(tmp_path / "out")])
    assert len(TimestepClusters.load(tmp_path / "out" / "clusters.json")) == 3
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    before = load_file(tmp_path / "start" / "unet" / "diffusion_pytorch_model.safetensors")
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mtl": "uw"}, "--mtl uw balances clusters: give --ant_clusters"),
        ({"ant_clusters": 5, "mtl": "pcgrd"}, "Unknown --mtl 'pcgrd'. Did you mean 'pcgrad'"),
        ({"ant_clusters": 5, "ant_cost": "snt"}, "Unknown --ant_cost 'snt'. Did you mean 'snr'"),
        ({"ant_clusters": 5, "ant_weighting": "sizes"}, "Did you mean 'size'"),
        ({"ant_clusters": -1}, "--ant_clusters is -1; it must be at least 0"),
        ({"ant_clusters": 5, "ant_cost": "affinity"}, "--ant_affinity FILE go together"),
        ({"ant_clusters": 5, "ant_affinity": "x"}, "--ant_affinity FILE go together"),
        ({"ant_clusters": 5, "mtl": "uw", "mtl_update_every": 2}, "is for pcgrad and nash, not for uw"),
        ({"ant_cost": "snr"}, "--ant_cost does nothing without --ant_clusters"),
        ({"ant_weighting": "size"}, "--ant_weighting does nothing without --ant_clusters"),
        ({"ant_clusters": 5, "mtl_learning_rate": 0.1}, "--mtl_learning_rate does nothing without --mtl uw"),
    ],
)
def test_bad_flags_are_refused(flags, message):
    with pytest.raises(ValueError) as caught:
        AntArguments(**flags)
    assert message in str(caught.value)
