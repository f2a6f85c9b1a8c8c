"""CUBER in the trainer: resumption, processes, files, refusals, and what its rule does in a step."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuber_cases import Convolving, Regression, arguments, pictures
from torch import nn

from dmkit.auxiliary import training
from dmkit.auxiliary.continual._streams import permuted_digits
from dmkit.auxiliary.continual.cuber import CUBER, GPM, TRGP, learn
from dmkit.auxiliary.continual.cuber.rule import RegimeProjection
from dmkit.errors import FileFormatError
from dmkit.training.networks import MLP

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import run_script

PLAIN = SimpleNamespace(scaler=None)


def learned(folder, kind=CUBER, tasks=2, **options):
    torch.manual_seed(0)
    model = Convolving()
    learner = kind(model, heads=["heads"], energy=0.9, **options)
    for t in range(tasks):
        model.task = t
        learn(Regression(model), pictures(0), arguments(folder / str(t)), learner)
    return model, learner


def test_a_learner_is_saved_and_read(tmp_path):
    model, learner = learned(tmp_path, eps1=0.1, reg_weight=0.3)
    learner.save(tmp_path / "kept")
    again = GPM.load(tmp_path / "kept", model)
    assert type(again) is CUBER
    assert again.settings() == learner.settings()
    assert again.memory_numel() == learner.memory_numel() > 0
    for name in learner.layers:
        assert torch.equal(again.pools[name], learner.pools[name])
        assert again.regimes(name, 1) == learner.regimes(name, 1)
        for a, b in zip(again.tasks, learner.tasks, strict=True):
            assert a.columns == b.columns
            assert torch.equal(a.gradients[name], b.gradients[name])
            for j, scale in b.scales.get(name, {}).items():
                assert torch.equal(a.scales[name][j], scale)


def test_files_that_do_not_fit_are_refused(tmp_path):
    model, learner = learned(tmp_path, tasks=1)
    learner.save(tmp_path / "kept")
    other = Convolving()
    other.conv = nn.Conv2d(2, 6, 5, padding=2, stride=2)
    with pytest.raises(FileFormatError, match=r"pool.conv has shape .* not \(51"):
        GPM.load(tmp_path / "kept", other)
    config = tmp_path / "kept" / "continual.json"
    whole = json.loads(config.read_text())
    for change, message in (
        ({"format": 9}, "has format 9; this version reads 1"),
        ({"learner": "CUBBER"}, "Unknown learner 'CUBBER'. Did you mean 'CUBER'"),
        ({"settings": {**whole["settings"], "eps1": 3}}, "eps1 is in"),
        ({"tasks": [{**whole["tasks"][0], "columns": {"conv": [99], "lin": [0]}}]}, "columns of conv beyond"),
        ({"tasks": [*whole["tasks"], whole["tasks"][0]]}, "grad.1.conv is missing"),
    ):
        config.write_text(json.dumps({**whole, **change}))
        with pytest.raises(FileFormatError, match=message):
            GPM.load(tmp_path / "kept", model)
    with pytest.raises(FileFormatError, match="missing or is not valid JSON"):
        GPM.load(tmp_path / "nowhere", model)


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path):
    """Finished tasks are taken from their last checkpoints, the cut one goes on in the middle of an epoch."""
    kind, run = training("cuber")
    given = kind(tasks=2, examples=40, stream="alternating", eps1=0.1, eps2=0.0, check="ema", hidden=[12])
    settings = {"train_batch_size": 8, "num_epochs": 4, "checkpointing_steps": 7}
    whole = run(given, arguments(tmp_path / "whole", **settings))
    parts = tmp_path / "parts"
    run(given, arguments(parts, **settings))
    for name in ("checkpoint-14", "checkpoint-20"):
        (parts / "task-1" / name).rename(tmp_path / name)
    again = run(given, arguments(parts, **settings, resume_from_checkpoint="latest"))
    assert again == whole
    for name in ("model", "optimizer-main.safetensors", "rule.safetensors"):
        files = [tmp_path / "checkpoint-20" / name, parts / "task-1" / "checkpoint-20" / name]
        one, two = (next(f.glob("*.safetensors")) if f.is_dir() else f for f in files)
        assert one.read_bytes() == two.read_bytes()


def test_two_processes_learn_what_one_does(tmp_path):
    common = [
        *("--method", "cuber", "--tasks", "2", "--examples", "40", "--hidden", "12", "--num_epochs", "2"),
        *("--eps1", "0.1", "--stream", "alternating", "--optimizer", "sgd", "--learning_rate", "0.05"),
        *("--lr_warmup_steps", "0", "--lr_scheduler", "constant"),
        *("--report_to", "none", "--max_grad_norm", "0", "--save_images_epochs", "0"),
    ]
    kind, run = training("cuber")
    given = kind(tasks=2, examples=40, hidden=[12], eps1=0.1, stream="alternating")
    run(given, arguments(tmp_path / "1", train_batch_size=8))
    run_script(
        "train_auxiliary",
        *common,
        "--train_batch_size",
        "4",
        "--output_dir",
        str(tmp_path / "2"),
        processes=2,
    )
    one, two = (
        MLP.from_pretrained(next((tmp_path / n / "task-1").glob("**/config.json")).parent) for n in "12"
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def lone_rule(**options) -> tuple[nn.Linear, RegimeProjection]:
    """A layer of two outputs, an old task that spans the first input and agrees in it."""
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    old = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    options = {"eps2": 0.2, "reg_weight": 0.5, **options}
    return layer, RegimeProjection(
        {"lin": layer}, {"lin": torch.eye(3)[:, :1]}, {"lin": [[0]]}, {"lin": {0: old}}, **options
    )


def gradient_after(layer, rule, *rows):
    layer.weight.grad = torch.tensor(rows)
    rule.finish(PLAIN, [layer.weight], torch.Generator())
    return layer.weight.grad


def test_the_first_penalty_is_zero_and_later_ones_are_of_length_lambda():
    layer, rule = lone_rule()
    assert gradient_after(layer, rule, [1.0, 2, 3], [0.0, 0, 0]).tolist() == [[1, 2, 3], [0, 0, 0]]
    layer.weight.data[:, 0] = torch.tensor([3.0, 4.0])
    found = gradient_after(layer, rule, [1.0, 2, 3], [0.0, 0, 0])
    torch.testing.assert_close(found, torch.tensor([[1.3, 2, 3], [0.4, 0, 0]]))


def test_a_task_that_disagrees_falls_to_regime_2_for_good():
    layer, rule = lone_rule()
    assert rule.still_open() == {"lin": [0]}
    assert gradient_after(layer, rule, [-1.0, 2, 3], [0.0, 0, 0]).tolist() == [[0, 2, 3], [0, 0, 0]]
    assert rule.still_open() == {"lin": []}
    assert gradient_after(layer, rule, [1.0, 2, 3], [0.0, 0, 0]).tolist() == [[0, 2, 3], [0, 0, 0]]


def test_an_average_forgives_one_noisy_step():
    for check, options in (("ema", {}), ("epoch", {"steps_per_epoch": 2})):
        layer, rule = lone_rule(check=check, **options)
        gradient_after(layer, rule, [9.0, 0, 0], [0.0, 0, 0])
        gradient_after(layer, rule, [-0.5, 0, 0], [0.0, 0, 0])
        assert rule.still_open() == {"lin": [0]}, check
        for _ in range(40):
            gradient_after(layer, rule, [-0.5, 0, 0], [0.0, 0, 0])
        assert rule.still_open() == {"lin": []}, check


def test_a_gradient_that_is_not_finite_decides_nothing():
    layer, rule = lone_rule()
    gradient_after(layer, rule, [float("inf"), 0, 0], [0.0, 0, 0])
    assert rule.still_open() == {"lin": [0]}


def test_a_shared_direction_stays_protected():
    layer = nn.Linear(2, 1, bias=False)
    agreeing = {"lin": {1: torch.ones(1, 2)}}
    rule = RegimeProjection(
        {"lin": layer}, {"lin": torch.eye(2)}, {"lin": [[0], [0, 1]]}, agreeing, eps2=0.0, reg_weight=0.0
    )
    assert gradient_after(layer, rule, [1.0, 1.0]).tolist() == [[0, 1]]


def test_a_full_pool_warns_and_the_table_says_what_is_projected(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    learner = GPM(model, energy=1.0)
    rows = pictures(0)
    rows.columns = {"inputs": torch.randn(30, 3), "targets": torch.randn(30, 2)}
    with pytest.warns(UserWarning, match="No direction is left in 0"):
        learn(Regression(model), rows, arguments(tmp_path), learner)
    text = learner.describe()
    assert "1.weight" in text
    assert text.count("frozen") == 2


def test_orders_and_names_are_checked(tmp_path):
    model = Convolving()
    task, batch = Regression(model), [{"inputs": torch.ones(2, 2, 4, 4), "targets": torch.zeros(2, 3)}]
    learner = TRGP(model, heads=["heads"])
    with pytest.raises(ValueError, match="begin_task comes before end_task"):
        learner.end_task(batch)
    with pytest.raises(ValueError, match="none of which is this learner's model"):
        learner.begin_task(Regression(nn.Linear(2, 2)))
    learner.begin_task(task)
    with pytest.raises(ValueError, match="end_task comes before the next"):
        learner.begin_task(task)
    with pytest.raises(ValueError, match="end_task comes before save"):
        learner.save(tmp_path / "x")
    learner.end_task(batch)
    assert task.modules["model"] is model
    with pytest.raises(ValueError, match="There is no batch to measure"):
        learner.begin_task(task, [])
    with pytest.raises(ValueError, match="There is no finished task 1; there are 1"), learner.use_task(1):
        pass
    with pytest.raises(ValueError, match=r"Unknown layer 'linn'\. Did you mean 'lin'"):
        learner.subspace("linn", 0)


def test_a_layer_that_is_never_called_is_named():
    model = Convolving()
    learner = GPM(model)  # the head of the second task is no exception
    task, batch = Regression(model), [{"inputs": torch.ones(2, 2, 4, 4), "targets": torch.zeros(2, 3)}]
    learner.begin_task(task)
    with pytest.raises(ValueError, match=r"The task never calls heads\.1; leave such layers out"):
        learner.end_task(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, r"energy is a share in \(0, 1\], not 0.0"),
        ({"energy": {"conv": 0.9}}, "Unknown layer with an energy"),
        ({"energy_step": -1}, "energy_step is at least 0"),
        ({"eps1": 1.0}, r"eps1 is in \[0, 1\), not 1.0"),
        ({"eps2": -0.1}, r"eps2 is in \[0, 1\), not -0.1"),
        ({"reg_weight": -1}, "reg_weight is at least 0"),
        ({"gradient_floor": -1}, "gradient_floor is at least 0"),
        ({"max_related": -1}, "max_related is at least 0"),
        ({"scale_learning_rate": 0}, "scale_learning_rate is positive"),
        ({"check": "steps"}, "Unknown check 'steps'. Did you mean 'step'"),
        ({"layers": ["con"]}, "Unknown module 'con'. Did you mean 'conv'"),
        ({"heads": ["head"]}, "Unknown module 'head'. Did you mean 'heads'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CUBER(Convolving(), **options)


def test_models_that_cannot_be_projected_are_refused():
    with pytest.raises(ValueError, match="The running statistics of 1 would change"):
        GPM(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="0 is a convolution in 4 groups"):
        GPM(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)))
    with pytest.raises(TypeError, match="1 is a LayerNorm"):
        GPM(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), layers=["0", "1"])
    with pytest.raises(ValueError, match="There is no layer to project"):
        GPM(nn.LayerNorm(2))


def test_streams():
    stream = permuted_digits(3, 50, seed=1)
    assert torch.equal(stream[0].inputs.sort(1).values, stream[2].inputs.sort(1).values)
    assert not torch.equal(stream[0].inputs, stream[1].inputs)
    turns = permuted_digits(3, 50, seed=1, alternating=True)
    assert torch.equal(turns[0].test_inputs, turns[2].test_inputs)
    assert not torch.equal(turns[0].inputs, turns[2].inputs)
    with pytest.raises(ValueError, match="1300 examples to train on are more than the 1297"):
        permuted_digits(1, 1300, seed=0)
    with pytest.raises(ValueError, match="At least one task"):
        permuted_digits(0, 5, seed=0)
