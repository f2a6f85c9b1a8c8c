import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from dmkit.app import train
from dmkit.app.train import RECIPES, Trainings, command
from dmkit.errors import TrainingError

pytest.importorskip("tensorboard")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture
def trainings(tmp_path):
    server = Trainings(tmp_path / "runs")
    yield server
    server.stop()


def test_a_real_training_is_seen_from_its_files(trainings):
    output = trainings.start("digits", max_train_steps=10, seed=0)
    assert trainings.running
    with pytest.raises(TrainingError, match="running already"):
        trainings.start("digits", max_train_steps=10, seed=0)
    wait_for(lambda: not trainings.running, 240)
    state = trainings.state()
    assert state.status == f"digits-1 is done: {output} holds the result.", state.log
    assert {step for step, *_ in state.losses} == {5, 10}
    assert all(0 < value < 10 for *_, value in state.losses)
    assert [path.name for path in state.samples] == ["step-0000010.png"]
    assert (output / "unet").is_dir() or (output / "model_index.json").is_file()
    assert trainings.shown_command().startswith("python scripts/train_unconditional.py --dataset_name=digits")


@pytest.fixture
def slow(monkeypatch):
    """In the place of the training, a process that counts its starts in a file and then sleeps."""
    code = "import pathlib, sys, time; f = open(sys.argv[1], 'a'); f.write('x'); f.close(); time.sleep(600)"

    def stand_in(recipe, output, **_):
        return [sys.executable, "-c", code, str(output / "starts")]

    monkeypatch.setattr(train, "command", stand_in)


def test_stop_and_resume(trainings, slow):
    with pytest.raises(TrainingError, match="no training to resume"):
        trainings.resume()
    output = trainings.start("digits")
    starts = output / "starts"
    wait_for(lambda: starts.is_file() and starts.read_text() == "x")
    assert trainings.state().status == "digits-1 starts."
    trainings.stop()
    assert not trainings.running
    assert "was stopped" in trainings.state().status
    trainings.resume()
    wait_for(lambda: starts.read_text() == "xx")
    trainings.stop()
    trainings.stop()


def test_a_failure_is_said_in_one_line(trainings, monkeypatch):
    monkeypatch.setattr(
        train, "command", lambda *_, **__: [sys.executable, "-c", "raise SystemExit('ValueError: no data')"]
    )
    trainings.start("digits")
    wait_for(lambda: not trainings.running)
    assert trainings.state().status == "digits-1 failed: ValueError: no data"


@pytest.mark.parametrize(
    ("recipe", "inputs", "message"),
    [
        ("digit", {}, "Did you mean 'digits'"),
        ("../digits", {}, "Unknown recipe"),
        ("digits", {"max_train_steps": 10**9}, "Steps must be"),
        ("digits", {"seed": None}, "The seed must be"),
        ("spm", {"target": ""}, "The concept to erase is empty"),
        ("spm", {"target": "a\nb"}, "line breaks"),
    ],
)
def test_bad_inputs_start_nothing(trainings, recipe, inputs, message):
    with pytest.raises(ValueError, match=message):
        trainings.start(recipe, **{"max_train_steps": 10, "seed": 0, **inputs})
    assert not trainings.running
    assert not trainings.root.exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_understood_by_its_script(recipe, tmp_path, monkeypatch):
    line = command(recipe, tmp_path, max_train_steps=10, seed=0, target="--a heart")
    if recipe == "spm":
        from dmkit.adapters.erasing.configure import parse

        arguments, training = parse(line[2:], description="")
        assert arguments.target == ["--a heart"]
    else:
        from dmkit.models.arguments import ScaleLongArguments
        from dmkit.training.ant.configure import AntArguments
        from dmkit.training.arguments import TrainingArguments, parse_arguments

        module = ModuleType("script")
        # Dataclasses look for their module there.
        monkeypatch.setitem(sys.modules, "script", module)
        exec(compile(Path(line[1]).read_text(), line[1], "exec"), vars(module))
        kinds = (module.ModelArguments, TrainingArguments, AntArguments, ScaleLongArguments)
        _, training, *_ = parse_arguments(*kinds, description="", argv=line[2:])
    assert training.max_train_steps == 10
    assert training.output_dir == str(tmp_path)


def test_without_the_scripts_it_says_so(trainings, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "SCRIPTS", tmp_path / "none")
    assert not trainings.available
    with pytest.raises(TrainingError, match="in dmkit's repository"):
        trainings.start("digits", max_train_steps=10, seed=0)
