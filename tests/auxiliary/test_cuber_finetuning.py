"""`--continual` of the text-to-image script, as a user runs it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from cuber_cases import Convolving, Regression, arguments, pictures
from diffusers import DiffusionPipeline, UNet2DConditionModel

from dmkit.auxiliary.continual.cuber import GPM, learn
from dmkit.auxiliary.continual.cuber.finetuning import ContinualArguments, go_on
from dmkit.images import to_pil
from dmkit.training.subspaces import matrix

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import script_main
from tiny_models import SIDE, tiny_text_to_image
from tiny_models import pictures as captioned


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A model, old and new captioned pictures."""
    room = tmp_path_factory.mktemp("room")
    tiny_text_to_image().save_pretrained(room / "start")
    for name, seed in (("old", 0), ("new", 1)):
        (room / name).mkdir()
        lines = []
        for k, item in enumerate(captioned(12, seed=seed).__getitems__(range(12))):
            to_pil(item["images"]).save(room / name / f"{k}.png")
            lines.append(json.dumps({"file_name": f"{k}.png", "text": item["captions"]}))
        (room / name / "metadata.jsonl").write_text("\n".join(lines))
    return room


@pytest.fixture(scope="module")
def train(room):
    common = [
        *("--pretrained_model_name_or_path", str(room / "start"), "--dataset_name", str(room / "new")),
        *("--cache_dir", str(room / "cache"), "--resolution", str(SIDE), "--train_batch_size", "6"),
        *("--max_train_steps", "4", "--learning_rate", "0.001", "--lr_warmup_steps", "1"),
        *("--save_images_epochs", "0", "--report_to", "none", "--checkpointing_steps", "0"),
    ]
    with script_main("train_text_to_image") as main:
        yield lambda folder, *flags: main([*common, "--output_dir", str(room / folder), *flags])


def guarding(room, name, *more) -> tuple[str, ...]:
    flags = ("--old_dataset_name", str(room / "old"), "--old_examples", "8", "--continual_energy", "0.6")
    return ("--continual", name, *flags, *more)


def weights(folder) -> dict[str, torch.Tensor]:
    return UNet2DConditionModel.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("more", [(), ("--use_ema", "True")])
def test_a_pipeline_for_the_new_data_and_a_memory_for_the_old(room, train, more):
    train("cuber", *guarding(room, "cuber", "--continual_eps1", "0.1", "--continual_eps2", "0.9", *more))
    start, new = weights(room / "start" / "unet"), weights(room / "cuber" / "unet")
    old = UNet2DConditionModel.from_pretrained(room / "cuber" / "continual" / "unet")
    learner = GPM.load(room / "cuber" / "continual", old)
    assert len(learner.tasks) == 2
    with learner.use_task(1):
        assert all(torch.equal(value, new[name]) for name, value in old.state_dict().items())
    after = {name: matrix(layer).detach().clone() for name, layer in learner.layers.items()}
    scaled = [
        name for name in after if not torch.equal(new[f"{name}.weight"], old.get_parameter(f"{name}.weight"))
    ]
    assert scaled
    assert all(torch.equal(value, start[name]) for name, value in new.items() if "norm" in name)
    old.load_state_dict(start)
    for name, matrix_after in after.items():  # what the old data look at is answered as before
        step = matrix_after - matrix(learner.layers[name]).detach()
        assert (step @ learner.subspace(name, 0)).abs().max() < 1e-6
    assert (
        sum(
            float((after[name] - matrix(layer)).detach().abs().max()) > 1e-4
            for name, layer in learner.layers.items()
        )
        > 20
    )
    pipe = DiffusionPipeline.from_pretrained(room / "cuber", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red heart", num_inference_steps=2, output_type="np").images.shape == (1, SIDE, SIDE, 3)


def test_gpm_needs_one_network_only(room, train):
    train("gpm", *guarding(room, "gpm"))
    assert {path.name for path in (room / "gpm" / "continual").iterdir()} == {
        "continual.json",
        "continual.safetensors",
    }
    new, start = weights(room / "gpm" / "unet"), weights(room / "start" / "unet")
    assert any(not torch.equal(new[name], start[name]) for name in new)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--continual", "cubber", "--old_dataset_name", "x"], "Unknown --continual 'cubber'. Did you mean"),
        (["--continual", "cuber"], "give --old_dataset_name"),
        (["--old_dataset_name", "x"], "--old_dataset_name is for --continual: give one of gpm, trgp, cuber"),
        (
            ["--continual", "gpm", "--old_dataset_name", "x", "--mtl", "uw", "--ant_clusters", "3"],
            "--continual gpm and --mtl uw are two gradient rules",
        ),
        (["--continual", "gpm", "--old_dataset_name", "x", "--old_examples", "0"], "--old_examples is 0"),
    ],
)
def test_bad_flags_are_refused(train, flags, message):
    with pytest.raises(ValueError) as caught:
        train("refused", *flags)
    assert message in str(caught.value)


def test_a_new_model_knows_nothing(room):
    with script_main("train_text_to_image") as main, pytest.raises(ValueError, match="give --pretrained_mod"):
        main([*guarding(room, "gpm"), "--dataset_name", "x", "--vae", "x", "--text_encoder", "x"])


def test_a_learner_that_has_begun_is_refused(tmp_path):
    model = Convolving()
    learner = GPM(model, heads=["heads"])
    learn(Regression(model), pictures(0), arguments(tmp_path), learner)
    with pytest.raises(ValueError, match="has 1 tasks already; go on with `learn`"):
        go_on(Regression(model), model, pictures(0), pictures(1), arguments(tmp_path), learner)


def test_the_old_data_are_looked_at_evenly():
    flags = ContinualArguments(continual="gpm", old_dataset_name="x", old_examples=4)
    assert flags.some(range(10)) == [0, 2, 5, 7]
    assert flags.some(range(3)) == [0, 1, 2]
