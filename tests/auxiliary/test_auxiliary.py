"""How the neighbouring methods are found, and the script that trains them."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmkit import auxiliary
from dmkit.training.arguments import TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import script_main

ROOT = Path(__file__).parents[2]


def test_every_method_says_what_it_does_and_has_its_page():
    for method in auxiliary.methods():
        assert len(method.summary) > 40, method.name
        importlib.import_module(method.module)
        if method.trains:
            kind, run = auxiliary.training(method.name)
            assert callable(run)
            assert kind.__doc__


def test_names_are_unique():
    names = [method.name for method in auxiliary.methods()]
    assert len(set(names)) == len(names)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Unknown auxiliary method 'cubber'"):
        auxiliary.training("cubber")


def test_a_stage_has_its_own_folder_and_changes():
    whole = TrainingArguments(output_dir="outputs/x", seed=3, learning_rate=0.5)
    part = auxiliary.stage(whole, "old", learning_rate=0.1)
    assert (part.output_dir, part.seed, part.learning_rate) == (str(Path("outputs/x/old")), 3, 0.1)
    assert whole.output_dir == "outputs/x"


@dataclass
class Settings:
    """Of a method that is not there."""

    size: int = 2


def test_the_script_hands_over_and_writes_what_was_measured(tmp_path, monkeypatch, capsys):
    def run(arguments, training):
        return {"size": arguments.size, "seed": training.seed}

    monkeypatch.setattr(auxiliary, "training", lambda name: (Settings, run))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: nothing\nsize: 5\nseed: 7\n")
    with script_main("train_auxiliary") as main:
        main(["--config", str(recipe), "--seed", "8", "--output_dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == {"size": 5, "seed": 8}
    assert '"size": 5' in capsys.readouterr().out


def test_the_script_without_a_method_lists_them(monkeypatch, capsys):
    known = SimpleNamespace(name="cuber", summary="Learns one task after another.", trains=True)
    monkeypatch.setattr(auxiliary, "methods", lambda: [known])
    with script_main("train_auxiliary") as main:
        for argv, code in ((["--help"], 0), ([], 2)):
            with pytest.raises(SystemExit) as stop:
                main(argv)
            assert stop.value.code == code
            assert "cuber        Learns one task after another." in capsys.readouterr().err
