"""Compressors, and what of the communication hook needs one process only."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dmkit.data import Rows
from dmkit.training.arguments import TrainingArguments, parse_arguments
from dmkit.training.classifying import ClassificationTask
from dmkit.training.communication import EF21State, Grid, Natural, RandK, TopK, register_ef21
from dmkit.training.networks import MLP
from dmkit.training.trainer import Trainer


def error(compressor, v, generator=None):
    return (compressor(v, generator) - v).square().sum(-1)


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_topk_contracts(d, ratio, seed):
    v = torch.randn(5, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    compressor = TopK(ratio)
    k = compressor.k(d)
    assert ratio * d - 1e-6 <= k < ratio * d + 1
    assert 1 <= k <= d
    assert ((compressor(v) != 0).sum(1) == k).all()
    assert (error(compressor, v) <= (1 - compressor.alpha(d)) * v.square().sum(1) + 1e-12).all()
    flat = v.sign()  # equal sizes: the bound is met
    torch.testing.assert_close(error(compressor, flat), torch.full((5,), float(d - k), dtype=torch.float64))


def test_ratios_are_not_rounded_up_by_an_error_of_floats():
    assert 0.07 * 100 > 7
    assert TopK(0.07).k(100) == 7
    assert (TopK(0.01).k(3), TopK(0.5).k(3), TopK(k=9).k(3)) == (1, 2, 3)


def test_randk_and_natural_contract_on_average():
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(20, dtype=torch.float64).expand(20000, 20)
    mean = error(RandK(0.25), v, generator).mean()
    assert abs(mean / v[0].square().sum() - 0.75) < 0.01
    arrived = Natural()(v, generator)
    assert ((arrived - v).square().sum(1).mean() / v[0].square().sum()) <= 1 / 8
    torch.testing.assert_close(arrived.mean(0), v[0], atol=0.02, rtol=0.01)  # without bias
    assert (torch.frexp(arrived).mantissa.abs() == 0.5).all()  # powers of two
    worst = torch.full((200000, 1), 4 / 3, dtype=torch.float64)
    assert abs(error(Natural(), worst, generator).mean() / (16 / 9) - 1 / 8) < 0.002
    assert not Natural()(torch.zeros(3)).any()


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_which_are_homogeneous(c, seed):
    v = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for compressor in (TopK(0.3), RandK(0.3)):
        assert compressor.homogeneous
        a, b = (compressor(x, torch.Generator().manual_seed(1)) for x in (c * v, v))
        torch.testing.assert_close(a, c * b)


def test_a_grid_is_not_homogeneous_and_has_no_alpha():
    v = torch.tensor([0.06, 0.26])
    assert not torch.allclose(Grid(0.1)(3 * v), 3 * Grid(0.1)(v))
    assert not Grid(0.1).homogeneous
    assert not Natural().homogeneous
    with pytest.raises(ValueError, match="Grid is not contractive"):
        Grid(0.1).alpha(3)


def test_bits():
    assert TopK(0.1).bits(100) == 10 * 64
    assert TopK(0.9).bits(100) == 100 * 32  # places would cost more than they save
    assert Natural().bits(100) == 900
    assert Grid(1.0).bits(100) == 3200


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, math.nan])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        TopK(ratio)
    with pytest.raises(ValueError, match=r"--comm_ratio is .*in \(0, 1\]"):
        TrainingArguments(comm_ratio=ratio)


def test_what_else_is_refused():
    with pytest.raises(ValueError, match="Either ratio or k"):
        TopK()
    with pytest.raises(ValueError, match="Either ratio or k"):
        RandK(0.1, k=3)
    with pytest.raises(ValueError, match="k is at least 1"):
        TopK(k=0)
    with pytest.raises(ValueError, match="step must be positive"):
        Grid(0)
    with pytest.raises(ValueError, match="start_iter is at least 1"):
        EF21State(TopK(0.1), start_iter=0)
    with pytest.raises(TypeError, match="TopK or RandK, not"):
        EF21State(Natural())
    with pytest.raises(ValueError, match=r"Unknown --comm_hook 'ef2'. Did you mean 'ef21'"):
        TrainingArguments(comm_hook="ef2")
    with pytest.raises(ValueError, match="--comm_start_iter is 0"):
        TrainingArguments(comm_start_iter=0)


def test_flags():
    def parsed(*argv):
        return parse_arguments(TrainingArguments, description="", argv=argv)[0]

    assert parsed().comm_hook == "none"
    arguments = parsed("--comm_hook", "ef21", "--topk", "0.05", "--comm_start_iter", "3")
    assert (arguments.comm_hook, arguments.comm_ratio, arguments.comm_start_iter) == ("ef21", 0.05, 3)


def test_the_fp16_scaler_is_refused():
    accelerator = SimpleNamespace(scaler=object(), num_processes=2)
    with pytest.raises(ValueError, match="fp16 loss scaler changes their unit"):
        register_ef21(accelerator, nn.Linear(2, 2), TopK(0.1))


def test_memory_of_another_model_is_refused():
    state, network = EF21State(TopK(0.1)), nn.Linear(8, 8)
    with pytest.raises(ValueError, match="memory of weight has another size"):
        state.load_memory(network, {"weight": torch.zeros(3)}, {})
    with pytest.raises(KeyError):
        state.load_memory(network, {"other": torch.zeros(64)}, {})
    own = {"weight": torch.arange(64.0)}
    state.load_memory(network, own, own)
    assert torch.equal(state.memory(network)[0]["weight"], own["weight"])
    state.refill()
    assert state.memory(network) == ({}, {})
    assert state.iteration == 1


def test_one_process_trains_as_without_and_says_so_once(tmp_path, caplog):
    weights = []
    for hook in ("none", "ef21"):
        torch.manual_seed(0)
        rows = Rows(inputs=torch.randn(16, 4), labels=torch.arange(16) % 3)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / hook),
            train_batch_size=4,
            max_train_steps=4,
            checkpointing_steps=4,
            save_images_epochs=0,
            report_to="none",
            comm_hook=hook,
        )
        network = MLP((4, 3))
        with caplog.at_level(logging.WARNING):
            trainer = Trainer(ClassificationTask(network), rows, arguments)
            trainer.train()
        weights.append(network.state_dict())
        assert trainer.communication.figures() == {}
        assert not (tmp_path / hook / "checkpoint-4" / "communication").exists()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    said = [r.getMessage() for r in caplog.records if "comm_hook" in r.getMessage()]
    assert said == ["--comm_hook ef21 does nothing in one process."]
