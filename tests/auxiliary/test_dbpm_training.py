"""DBPM in the trainer: what it leaves as it was, resumption, processes, files, refusals, its recipe."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dbpm_cases import COUNT, state, task, training

from dmkit.auxiliary.timeseries.dbpm import TSTCC, BadPairMiner, Encoder, Forecaster, SimCLR, pretrain
from dmkit.auxiliary.timeseries.dbpm.training import Arguments, run
from dmkit.errors import FileFormatError, TrainingError
from dmkit.training.trainer import Step

LEARNERS = [SimCLR, TSTCC]


def weights(trained: SimCLR) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state(trained).items() if not name.startswith("miner")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("kind", LEARNERS)
def test_in_the_warm_up_and_with_infinite_thresholds_nothing_changes(kind, tmp_path):
    plain = weights(pretrain(task(kind, miner=False), training(tmp_path / "a", num_epochs=3)))
    infinite = BadPairMiner(COUNT, 1, math.inf, math.inf)
    assert same(plain, weights(pretrain(task(kind, infinite), training(tmp_path / "b", num_epochs=3))))
    with pytest.warns(UserWarning, match="A warm-up of 3 epochs in 3 leaves none"):
        warming = pretrain(
            task(kind, BadPairMiner(COUNT, 3, 1.0, 1.0)), training(tmp_path / "c", num_epochs=3)
        )
    assert same(plain, weights(warming))
    mined = pretrain(
        task(kind, BadPairMiner(COUNT, 1, 1.0, 1.0, "drop")), training(tmp_path / "d", num_epochs=3)
    )
    assert not same(plain, weights(mined))
    assert [entry["epoch"] for entry in mined.history] == [1, 2]
    assert mined.history[0]["noisy"] + mined.history[0]["faulty"] > 0


def test_an_epoch_has_each_pair_once_at_most():
    order = task()
    epochs = [torch.cat([order.rows(3 * e + k, 8)[1] for k in range(3)]) for e in range(3)]
    assert [order.rows(k, 8)[0] for k in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]
    for rows in epochs:
        assert len(rows) == len(rows.unique()) == 24
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(order.rows(4, 8)[1], epochs[1][8:16])  # of the step alone


def test_all_that_was_seen_is_in_the_memory(tmp_path):
    trained = pretrain(task(), training(tmp_path))
    assert trained.miner.count.sum() == 4 * 24
    again = BadPairMiner.from_pretrained(tmp_path / "miner")
    assert torch.equal(again.flags(), trained.miner.flags())
    assert torch.equal(again.total, trained.miner.total)
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    x = torch.randn(2, 1, 16)
    assert torch.equal(encoder(x), trained.modules["encoder"](x))


@pytest.mark.parametrize("at", [7, 9])  # within an epoch, and at the end of one
def test_a_run_that_stopped_goes_on_as_if_it_had_not(at, tmp_path):
    whole = pretrain(task(), training(tmp_path / "whole"))
    flags = {"checkpointing_steps": at, "resume_from_checkpoint": "latest"}
    pretrain(task(), training(tmp_path / "parts", max_train_steps=at, **flags))
    again = pretrain(task(), training(tmp_path / "parts", **flags))
    for name, value in state(whole).items():
        torch.testing.assert_close(value, state(again)[name], atol=0, rtol=0, equal_nan=True)
    other = task(miner=BadPairMiner(COUNT, 2, 1.0, 2.0))
    with pytest.raises(FileFormatError, match=r"beta_fp was 1\.0, now 2\.0"):
        pretrain(
            other, training(tmp_path / "parts", **{**flags, "resume_from_checkpoint": f"checkpoint-{at}"})
        )


def test_two_processes_train_what_one_does(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(Path(__file__).with_name("dbpm_cases.py")), str(tmp_path)],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    for kind in LEARNERS:
        ranks = [torch.load(tmp_path / f"{kind.__name__}-{rank}.pt") for rank in (0, 1)]
        one = state(pretrain(task(kind), training(tmp_path / "one" / kind.__name__)))
        for name, value in one.items():
            torch.testing.assert_close(ranks[0][name], ranks[1][name], equal_nan=True)
            torch.testing.assert_close(value, ranks[0][name], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_the_temporal_loss_of_tstcc_is_not_weighed():
    """Foretelling perfectly among orthogonal futures costs nearly nothing; the contrast is 0.7 NT-Xent."""
    learner = task(TSTCC, miner=False)
    step = Step(0, "main", None)
    u, v = torch.randn(2, 5, 1, 16, generator=torch.Generator().manual_seed(0))
    losses, others = learner.losses(u, v, step)
    assert losses.shape == (5,)
    assert others.keys() == {"temporal"}
    assert others["temporal"].ndim == 0
    learner.modules["head"] = Forecaster(6, 7, 50, 5)
    with pytest.raises(ValueError, match="A horizon of 50 leaves nothing of 8 steps"):
        learner.losses(u, v, step)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="The miner has a memory of 5 samples; there are 26"):
        task(miner=BadPairMiner(5, 1))
    for size in (1, 27):
        with pytest.raises(ValueError, match=f"A batch has {size} pairs; 2 to 26"):
            pretrain(task(), training(tmp_path, train_batch_size=size))
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be 1"):
        pretrain(task(), training(tmp_path, gradient_accumulation_steps=2))
    broken = task()
    broken.pairs.pairs.x[3] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        pretrain(broken, training(tmp_path))


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"data": "sine"}, "Did you mean 'sines'"),
        ({"learner": "simcl"}, "Did you mean 'simclr'"),
        ({"warmup": 0}, "warmup_epochs is 0"),
        ({"weighting": "x"}, "Unknown weighting"),
    ],
)
def test_flags_out_of_range(flags, error):
    with pytest.raises(ValueError, match=error):
        Arguments(**flags)


@pytest.mark.parametrize("learner", ["simclr", "tstcc"])
def test_the_recipe_trains_probes_and_writes_flags(learner, tmp_path):
    arguments = Arguments(samples=24, labelled=24, learner=learner, warmup=1, beta_np=1.0, beta_fp=1.0)
    figures = run(arguments, replace(training(tmp_path), num_epochs=2))
    assert 0 <= figures["accuracy"] <= 1
    assert figures["detection"].keys() == {"noisy", "faulty"}
    assert json.dumps(figures)
    lines = (tmp_path / "flags.csv").read_text().splitlines()
    assert lines[0] == "index,mean_loss,flag,made"
    assert len(lines) == 25
    assert sum(line.split(",")[2] == "noisy" for line in lines[1:]) == figures["noisy"]
