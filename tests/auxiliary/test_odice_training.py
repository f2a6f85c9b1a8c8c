"""O-DICE in the trainer: processes, resumption, recordings of an environment, the script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from odice_cases import settings, task, train
from safetensors.torch import load_file

from dmkit import auxiliary
from dmkit.auxiliary.rl.odice import Agent, Episodes, evaluate
from dmkit.auxiliary.rl.odice.collecting import collect, main, make_pendulum, swing_up
from dmkit.auxiliary.rl.odice.data import Episode
from dmkit.errors import FileFormatError, MissingExtraError

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import ENVIRONMENT, script_main

HERE = Path(__file__).parent


def weights(folder: Path) -> dict[str, torch.Tensor]:
    parts = ("value", "value_target", "policy")
    found = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in parts}
    return {f"{part}.{name}": value for part in parts for name, value in found[part].items()}


def test_two_processes_train_what_one_trains(tmp_path):
    """The coefficient is that of the mean gradients; that of each half would be another."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(HERE / "odice_cases.py"), str(tmp_path / "two"), "10"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train(tmp_path / "one", task(), max_train_steps=4)
    train(tmp_path / "semi", task(update="semi"), max_train_steps=4)
    alone, together, semi = (weights(tmp_path / name) for name in ("one", "two", "semi"))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)
    assert any((alone[name] - semi[name]).abs().max() > 1e-4 for name in alone)


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path):
    common = {"checkpointing_steps": 3, "optimizer": "adamw"}
    train(tmp_path / "whole", task(), max_train_steps=7, **common)
    train(tmp_path / "cut", task(), max_train_steps=3, **common)
    train(tmp_path / "cut", task(), max_train_steps=7, resume_from_checkpoint="latest", **common)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(FileFormatError, match=r"lam was 0.5, now 0.6"):
        train(tmp_path / "cut", task(lam=0.6), max_train_steps=9, resume_from_checkpoint="latest", **common)


def test_recordings_are_those_of_their_seed_and_disturbance(tmp_path, capsys):
    pytest.importorskip("gymnasium")
    calm, wild = (collect(make_pendulum, swing_up, 2, rates=[rate], seed=1) for rate in (0.0, 1.0))
    assert calm.returns().mean() > -400
    assert wild.returns().mean() < -600
    again = collect(make_pendulum, swing_up, 2, rates=[1.0], seed=1)
    assert torch.equal(again.episodes[1].observations, wild.episodes[1].observations)
    for one in wild.episodes:  # a time limit is no end
        assert not one.terminations.any()
        assert one.truncations.nonzero().flatten().tolist() == [199]
        assert len(one.observations) == 201
    with pytest.raises(ValueError, match="rates"):
        collect(make_pendulum, swing_up, rates=[1.5])
    main([str(tmp_path / "data"), "--episodes", "4"])
    assert "4 episodes in" in capsys.readouterr().out
    assert Episodes.load(tmp_path / "data").about["reference_return"] > -400


def test_what_minari_keeps_is_read(tmp_path, monkeypatch):
    minari, gymnasium = pytest.importorskip("minari"), pytest.importorskip("gymnasium")
    pytest.importorskip("pyarrow")
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = collect(make_pendulum, swing_up, 2)
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    minari.create_dataset_from_buffers(
        "pendulum/disturbed-v0",
        [EpisodeBuffer(**{name: getattr(e, name).numpy() for name in names}) for e in made.episodes],
        env=gymnasium.make("Pendulum-v1"),
        eval_env="Pendulum-v1",
        data_format="arrow",
        algorithm_name="swing-up",
        author="dmkit",
        author_email="nobody",
        code_permalink="none",
    )
    dataset = minari.load_dataset("pendulum/disturbed-v0")
    read = Episodes.from_minari(dataset.iterate_episodes())
    for a, b in zip(made.episodes, read.episodes, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_discrete_actions_are_refused():
    gymnasium = pytest.importorskip("gymnasium")
    with pytest.raises(TypeError, match="needs a box of actions, not Discrete"):
        collect(lambda: gymnasium.make("CartPole-v1"), swing_up, 1)


def test_returns_are_of_whole_episodes():
    pytest.importorskip("gymnasium")
    found = evaluate(swing_up, make_pendulum, 3, seed=5)
    environment = make_pendulum()
    for k in range(3):
        state, _ = environment.reset(seed=5 + k)
        total, ended = 0.0, False
        while not ended:
            state, reward, terminated, truncated, _ = environment.step(
                swing_up(torch.as_tensor(state)[None])[0].numpy()
            )
            total, ended = total + float(reward), terminated or truncated
        assert float(found[k]) == pytest.approx(total, rel=1e-4)
    with pytest.raises(ValueError, match="episodes is at least 1"):
        evaluate(swing_up, make_pendulum, 0)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dmkit\[rl\]'"):
        evaluate(swing_up, make_pendulum, 1)


@pytest.mark.parametrize("learner", ["odice", "sdice", "true", "iql", "bc"])
def test_the_script_trains_every_learner(tmp_path, capsys, learner):
    pytest.importorskip("gymnasium")
    recorded = collect(make_pendulum, swing_up, 2)
    Episodes(recorded.episodes, {**recorded.about, "random_return": -1200, "reference_return": -150}).save(
        tmp_path / "data"
    )
    flags = {
        "method": "odice",
        "data": tmp_path / "data",
        "learner": learner,
        "value_hidden": "8",
        "policy_hidden": "8",
        "evaluation_episodes": 1,
        "output_dir": tmp_path / "out",
        "max_train_steps": 2,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "report_to": "none",
    }
    with script_main("train_auxiliary") as script:
        script([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert set(found) == {"recorded_return", "return", "worst", "score"}
    assert Agent.load(tmp_path / "out/agent").about["learner"] == learner


def test_recordings_without_a_box_and_unknown_learners_are_refused(tmp_path):
    kind, run = auxiliary.training("odice")
    with pytest.raises(ValueError, match=r"Unknown --learner 'odise'. Did you mean 'odice'"):
        kind(learner="odise")
    ends = torch.tensor([False, True])
    one = Episode(torch.zeros(3, 1), torch.zeros(2, 1), torch.ones(2), ends, ~ends)
    Episodes([one]).save(tmp_path / "data")
    with pytest.raises(ValueError, match="do not say from what box their actions are"):
        run(kind(data=str(tmp_path / "data")), settings(tmp_path / "out"))
