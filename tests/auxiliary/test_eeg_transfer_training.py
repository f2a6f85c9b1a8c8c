"""EEG transfer in the trainer: strategies, validation, resumption, processes, sweeps, files, its recipe."""

import builtins
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eeg_cases import SMALL, WINDOW, Net, network, noise, recordings, training, write_edf
from torch import nn

from dmkit.auxiliary.timeseries.eeg_transfer import (
    CHANNELS,
    STRATEGIES,
    EEGNetwork,
    Recordings,
    Signal,
    Transfer,
    adapt,
    evaluate,
    fit,
    fraction_sweep,
    predict_proba,
)
from dmkit.auxiliary.timeseries.eeg_transfer.networks import build, translated
from dmkit.auxiliary.timeseries.eeg_transfer.training import Arguments, run
from dmkit.auxiliary.timeseries.eeg_transfer.transfer import Cropped
from dmkit.errors import FileFormatError, MissingExtraError, TrainingError
from dmkit.training.trainer import Step

SIGNAL = Signal()


def state(net: EEGNetwork) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.network.state_dict().items()}


def changed(net: EEGNetwork, before: dict[str, torch.Tensor]) -> set[str]:
    """Children of the network with a weight or a statistic that moved."""
    return {name.partition(".")[0] for name, v in state(net).items() if not torch.equal(v, before[name])}


# Networks of braindecode


@pytest.fixture(scope="module")
def nets():
    pytest.importorskip("braindecode")
    torch.manual_seed(0)
    return {name: EEGNetwork.build(name, SIGNAL) for name in ("shallow", "deep4", "tcn", "eegnet")}


@pytest.mark.parametrize(
    ("name", "parameters", "predictions", "blocks"),
    [
        ("deep4", 277_052, 5794, 4),
        ("shallow", 37_522, 5392, 1),
        ("tcn", 456_502, 5070, 5),
        ("eegnet", 2_018, 5403, 4),
    ],
)
def test_networks_have_the_sizes_of_the_paper(name, parameters, predictions, blocks, nets):
    net = nets[name]
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.predictions == predictions
    assert len(net.blocks) == blocks
    assert net.head == "final_layer"
    net.eval()
    with torch.no_grad():
        logits = net(torch.randn(2, 21, 6000, generator=torch.Generator().manual_seed(0)))
    net.train()
    assert logits.shape == (2, 2, predictions)
    assert (logits.exp().sum(1) - 1).abs().mean() > 1e-2  # logits, not log-probabilities


@pytest.mark.parametrize(("name", "field", "strided"), [("deep4", 207, 215), ("shallow", 609, 360)])
def test_dense_networks_are_the_strided_ones_at_every_sample(name, field, strided, nets):
    dense = nets[name].network.eval()
    x = torch.randn(1, 21, 6000, generator=torch.Generator().manual_seed(1))
    whole = build(name, 21, 2, 6000, dense=False)
    with torch.no_grad():
        assert whole.eval()(x).shape == (1, 2, strided)
        here = dense(x)
        part = build(name, 21, 2, field, dense=False).eval()
        part.load_state_dict(dense.state_dict())
        for k in (0, 1, 77, here.shape[2] - 1):
            torch.testing.assert_close(
                part(x[..., k : k + field]).flatten(1), here[..., k], atol=1e-4, rtol=1e-4
            )
        elsewhere = x.clone()
        elsewhere[..., :-field] += 1
        torch.testing.assert_close(dense(elsewhere)[..., -1], here[..., -1], atol=1e-5, rtol=1e-5)
    dense.train()


def test_networks_load_by_themselves(nets, tmp_path):
    small = EEGNetwork.build("shallow", SIGNAL, 400, n_filters_time=4, n_filters_spat=4, final_conv_length=12)
    small.save_pretrained(tmp_path / "shallow")
    again = EEGNetwork.from_pretrained(tmp_path / "shallow")
    assert again.predictions == small.predictions == 137
    assert again.signal == SIGNAL
    x = torch.randn(2, 21, 400)
    assert torch.equal(again.eval()(x), small.eval()(x))
    fresh = small.fresh(3)
    assert not changed(fresh, state(small.fresh(3)))
    assert changed(fresh, state(small)) >= {"conv_time_spat", "final_layer"}
    assert [z.shape for z in small.activations(x)] == [(2, 4)]
    nets["tcn"].save_pretrained(tmp_path / "tcn")
    assert not changed(EEGNetwork.from_pretrained(tmp_path / "tcn"), state(nets["tcn"]))


def test_without_braindecode_the_extra_is_named(monkeypatch):
    there = builtins.__import__

    def missing(name, *rest, **more):
        if name == "braindecode":
            raise OSError("libtorchaudio.so: cannot open shared object file")
        return there(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"braindecode \(libtorchaudio.*'dmkit\[eeg\]'"):
        build("shallow", 21, 2, 6000)


def test_networks_that_cannot_be_built(nets):
    with pytest.raises(ValueError, match="Did you mean 'shallow'"):
        build("shalow", 21, 2, 6000)
    with pytest.raises(ValueError, match="Unknown setting of Deep4Net 'drop'"):
        build("deep4", 21, 2, 6000, drop=0.1)
    with pytest.raises(ValueError, match="shallow cannot be built for windows of 400 samples"):
        build("shallow", 21, 2, 400)


# Any network


def test_names_of_weights_that_changed_are_understood():
    old = {
        "block.conv1.weight_g": 1,
        "block.conv1.weight_v": 2,
        "fc.weight": 3,
        "block.conv1.bias": 4,
        "a.weight": 5,
    }
    new = {
        "block.conv1.parametrizations.weight.original0": 1,
        "block.conv1.parametrizations.weight.original1": 2,
        "final_layer.fc.weight": 3,
        "block.conv1.bias": 4,
        "a.parametrizations.weight.original": 5,
    }
    assert translated(old, new) == new
    assert translated(new, old) == old
    assert translated(new, new) == new


def test_weights_are_loaded_strictly():
    net, other = network(), network(seed=1)
    weights = state(other)
    net.load_weights(weights, head=False)
    assert changed(net, weights) == {"classify"}
    net.load_weights(weights)
    assert not changed(net, weights)
    for wrong in (
        {**weights, "more": torch.ones(1)},
        {k: v for k, v in weights.items() if k != "first.bias"},
    ):
        with pytest.raises(FileFormatError, match="The weights do not fit this network"):
            net.load_weights(wrong)


def test_a_network_of_ones_own_is_saved_and_loaded(tmp_path):
    net = network(norm=True)
    net.save_pretrained(tmp_path)
    again = EEGNetwork.from_pretrained(tmp_path, Net(norm=True))
    assert not changed(again, state(net))
    assert (again.signal, again.window, again.head) == (SMALL, WINDOW, "classify")
    assert again.blocks == [("first", "norm"), ("second",)]
    with pytest.raises(FileFormatError, match="holds a network of your own; give it as `network`"):
        EEGNetwork.from_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="The weights do not fit"):
        EEGNetwork.from_pretrained(tmp_path, Net())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 9}))
    with pytest.raises(FileFormatError, match="has format 9; this version reads 1"):
        EEGNetwork.from_pretrained(tmp_path, Net(norm=True))
    del config["window"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="lacks something: KeyError"):
        EEGNetwork.from_pretrained(tmp_path, Net(norm=True))
    (tmp_path / "model.safetensors").write_bytes(b"12")
    with pytest.raises(FileFormatError, match="truncated"):
        EEGNetwork.from_pretrained(tmp_path, Net(norm=True))


def test_recordings_that_a_network_does_not_take(tmp_path):
    net, some = network(), recordings(4)
    turned = Recordings(
        [x.flip(0) for x in some.data], some.labels, some.subjects, Signal(SMALL.ch_names[::-1], 50.0)
    )
    with pytest.raises(ValueError, match="another order"):
        predict_proba(net, turned)
    with pytest.raises(ValueError, match="The recordings to train on have 'CZ' as channel 0"):
        fit(net, turned, training(tmp_path))
    montage = Signal(CHANNELS[:19])
    nineteen = EEGNetwork(Net(channels=19), montage, WINDOW)
    with pytest.raises(ValueError, match="These recordings have 21 channels; 19 are expected"):
        predict_proba(nineteen, Recordings([torch.zeros(21, 60)], [0], ["a"], SIGNAL))


def test_networks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"The network does not take windows \(1, 3, 24\)"):
        EEGNetwork(Net(channels=4), SMALL, WINDOW)
    with pytest.raises(ValueError, match=r"gives torch.Size\(\[1, 2, 16\]\); \(1, 3, P\) is expected"):
        EEGNetwork(Net(), Signal(SMALL.ch_names, 50.0, ("a", "b", "c")), WINDOW)
    with pytest.raises(ValueError, match="The head 'fc' is none of the children"):
        EEGNetwork(Net(), SMALL, WINDOW, head="fc")
    with pytest.raises(ValueError, match="3 blocks cannot be frozen; 2 lie below"):
        network().freeze(3)

    class Odd(Net):
        def __init__(self):
            super().__init__()
            self.classify.gain = nn.ParameterList([torch.ones(1)])

    with pytest.raises(ValueError, match=r"classify\.gain \(ParameterList\) has no reset_parameters"):
        EEGNetwork(Odd(), SMALL, WINDOW).fresh(0)


# Strategies


def test_what_each_strategy_changes(tmp_path):
    some, source = recordings(), network(norm=True)
    fit(source, recordings(seed=1), training(tmp_path / "source"))
    before = state(source)
    expected = {
        "linear_probe": {"classify"},
        "partial": {"second", "classify"},
        "finetune": {"first", "norm", "second", "classify"},
        "discriminative": {"first", "norm", "second", "classify"},
    }
    for strategy, moved in expected.items():
        found = adapt(source, some, training(tmp_path / strategy), Transfer(strategy))
        assert changed(found, before) == moved
        assert not changed(source, before)
    frozen = adapt(source, some, training(tmp_path / "norm"), Transfer(freeze_norm=True))
    assert torch.equal(frozen.network.norm.running_mean, source.network.norm.running_mean)
    assert changed(frozen, before) == expected["finetune"]


def test_scratch_and_joint_ignore_the_source(tmp_path):
    some, also = recordings(), recordings(4, seed=2)
    for strategy in ("scratch", "joint"):
        runs = [
            adapt(network(seed=k), some, training(tmp_path / f"{strategy}{k}"), Transfer(strategy), also=also)
            for k in (0, 1)
        ]
        assert not changed(runs[0], state(runs[1]))
    alone = adapt(network(), some.joined(also), training(tmp_path / "alone"), Transfer("scratch"))
    assert not changed(runs[0], state(alone))
    with pytest.raises(ValueError, match="needs recordings of the source"):
        adapt(network(), some, training(tmp_path), Transfer("joint"))


def test_discriminative_with_ratio_one_is_finetuning_step_by_step(tmp_path):
    some = recordings()
    for steps in (1, 2, 5):
        one, other = (
            adapt(
                network(norm=True), some, training(tmp_path / f"{kind}-{steps}", max_train_steps=steps), how
            )
            for kind, how in (("f", Transfer()), ("d", Transfer("discriminative", layer_decay=1)))
        )
        assert not changed(one, state(other))


def test_rates_of_layers():
    net = network(norm=True)
    task = Cropped(net, [0, 1], Transfer("discriminative", layer_decay=2.0), 0.1, 1)
    groups = task.parameter_groups(list(net.parameters()))
    assert [g["lr"] for g in groups] == pytest.approx([0.025, 0.05, 0.1])
    assert [len(g["params"]) for g in groups] == [4, 2, 2]
    assert len({id(p) for g in groups for p in g["params"]}) == len(list(net.parameters()))


def test_a_rate_of_nothing_reproduces_the_source(tmp_path):
    source, some = network(norm=True), recordings()
    tuned = adapt(source, some, training(tmp_path, learning_rate=1e-30), Transfer(freeze_norm=True))
    assert torch.equal(predict_proba(tuned, some), predict_proba(source, some))


def test_twelve_windows_train_in_a_batch_of_sixty_four(tmp_path):
    net, some = network(), recordings(4)  # three windows each
    before = state(net)
    fit(net, some, training(tmp_path, num_epochs=1, train_batch_size=64))
    assert changed(net, before) == {"first", "second", "classify"}
    again = network()
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2, betas=(0.95, 0.999), weight_decay=1e-6)
    x = torch.cat([some.data[k][None, :, s : s + WINDOW] for k in range(4) for s in (0, 16, 32)])
    y = torch.tensor(some.labels).repeat_interleave(3)
    nn.functional.cross_entropy(again(x).mean(2), y).backward()  # one step, each window once
    optimizer.step()
    for name, value in state(again).items():
        torch.testing.assert_close(value, state(net)[name], atol=1e-5, rtol=1e-4)


def test_a_single_recording_a_class_and_batch_norm(tmp_path):
    net, one = network(norm=True), recordings(2, times=WINDOW)
    fit(net, one, training(tmp_path, train_batch_size=1))
    assert torch.isfinite(predict_proba(net, one)).all()


def test_rare_classes_may_count_more():
    step, batch = Step(0, "main", None), {"x": torch.randn(4, 3, WINDOW), "y": torch.tensor([0, 0, 0, 1])}
    net = network()
    plain, balanced = (
        Cropped(net, [0, 0, 0, 1], Transfer(class_weight=how), 0.1, 1) for how in ("none", "balanced")
    )
    assert balanced.weights.tolist() == pytest.approx([2 / 3, 2])
    losses = nn.functional.cross_entropy(net(batch["x"]).mean(2), batch["y"], reduction="none")
    torch.testing.assert_close(plain.training_step(batch, step)["classes"], losses.mean())
    expected = (losses * torch.tensor([2 / 3, 2 / 3, 2 / 3, 2])).mean()
    torch.testing.assert_close(balanced.training_step(batch, step)["classes"], expected)


# Validation, resumption, processes


def test_validation_chooses_the_epoch(tmp_path):
    valid = recordings(6, seed=3, name="v")
    epochs = {}
    for count in (1, 2, 3, 4, 5):
        net = fit(
            network(), recordings(), training(tmp_path / str(count), num_epochs=count, learning_rate=0.1)
        )
        epochs[count] = (evaluate(net, valid)["balanced_accuracy"], state(net))
    chosen = fit(
        network(), recordings(), training(tmp_path / "v", num_epochs=5, learning_rate=0.1), valid=valid
    )
    best = max(accuracy for accuracy, _ in epochs.values())
    assert evaluate(chosen, valid)["balanced_accuracy"] == best
    assert any(not changed(chosen, weights) for accuracy, weights in epochs.values() if accuracy == best)
    saved = EEGNetwork.from_pretrained(tmp_path / "v" / "network", Net())
    assert not changed(saved, state(chosen))


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path):
    valid = recordings(6, seed=3, name="v")
    whole = fit(network(norm=True), recordings(), training(tmp_path / "whole"), valid=valid)
    flags = {"checkpointing_steps": 7, "resume_from_checkpoint": "latest"}
    parts = training(tmp_path / "parts", max_train_steps=7, **flags)
    fit(network(norm=True), recordings(), parts, valid=valid)
    again = fit(network(norm=True), recordings(), training(tmp_path / "parts", **flags), valid=valid)
    assert not changed(again, state(whole))
    with pytest.raises(FileFormatError, match=r"transfer_layer_decay was 2\.6, now 3"):
        fit(
            network(norm=True),
            recordings(),
            replace(parts, resume_from_checkpoint="checkpoint-7"),
            transfer=Transfer(layer_decay=3),
            valid=valid,
        )


def test_two_processes_train_what_one_does(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(Path(__file__).with_name("eeg_cases.py")), str(tmp_path)],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1)]
    one = fit(network(), recordings(), training(tmp_path / "one"), valid=recordings(4, seed=9))
    for name, value in state(one).items():
        torch.testing.assert_close(ranks[0][name], ranks[1][name], atol=0, rtol=0)
        torch.testing.assert_close(value, ranks[0][name], atol=1e-5, rtol=1e-5)


# Sweeps


def swept(folder: Path, disagree: bool, **flags):
    """A source with many recordings, which may call the classes the other way, and few of the target."""
    many = recordings(24, seed=1, name="s")
    if disagree:
        many = Recordings(many.data, [1 - y for y in many.labels], many.subjects, SMALL)
    source = fit(network(), many, training(folder / "source", num_epochs=6))
    target, test = recordings(16, seed=2, name="t"), recordings(30, seed=3, name="e")
    fits = training(folder / "sweep", num_epochs=3, learning_rate=1e-3)
    return fraction_sweep(source, target, test, fits, source_train=many, source_test=many, **flags)


def test_transfer_helps_where_hospitals_agree_and_harms_where_not(tmp_path):
    flags = {"fractions": (0.125, 1.0), "seeds": (0, 1)}
    good = swept(tmp_path / "a", False, **flags)
    assert good.zero_shot["balanced_accuracy"] > 0.9
    assert min(good.gains("finetune", 0.125)) > 0.2
    assert not good.negative()
    bad = swept(tmp_path / "b", True, **flags)
    assert bad.zero_shot["balanced_accuracy"] < 0.1
    worse = bad.negative()
    assert {(w["strategy"], w["fraction"]) for w in worse} >= {("finetune", 0.125)}
    assert worse[0]["gain"] < -0.2
    assert worse[0]["seeds_worse"] == 1
    assert json.loads(json.dumps(bad.to_json()))["worse_than_scratch"] == worse
    rows = {(r["strategy"], r["fraction"], r["seed"]): r for r in good.rows}
    assert len(rows) == 8
    assert [rows["scratch", f, 0]["recordings"] for f in (0.125, 1.0)] == [2, 16]
    tuned = rows["finetune", 1.0, 0]
    assert tuned["forgetting"] == pytest.approx(
        good.source["balanced_accuracy"] - tuned["source_balanced_accuracy"]
    )
    assert "forgetting" not in rows["scratch", 1.0, 0]


def test_all_strategies_sweep(tmp_path):
    report = swept(tmp_path, False, fractions=(0.25,), seeds=(0,), strategies=STRATEGIES)
    assert [row["strategy"] for row in report.rows] == list(STRATEGIES)
    assert {p.name for p in (tmp_path / "sweep").iterdir()} == {f"{name}-0.25-0" for name in STRATEGIES}


# Bad input


def test_refusals(tmp_path):
    some = recordings(4)
    with pytest.raises(ValueError, match="No recording to train on is abnormal"):
        fit(network(), some.select([0, 2]), training(tmp_path))
    with pytest.raises(ValueError, match="Participant p0-0 is in both train and validation"):
        fit(network(), some, training(tmp_path), valid=some)
    with pytest.raises(ValueError, match="Participant p0-1 is in both train and test"):
        fraction_sweep(network(), some, some.select([1]), training(tmp_path))
    with pytest.raises(ValueError, match="use_ema"):
        fit(network(), some, training(tmp_path, use_ema=True))
    with pytest.raises(ValueError, match=r"Recording 0 \(p0-0\) has 20 samples; a window has 24"):
        fit(network(), recordings(4, times=20), training(tmp_path))
    broken = network()
    with torch.no_grad():
        broken.network.first.weight[0] = torch.inf
    with pytest.raises(TrainingError, match="not updated"):
        fit(broken, some, training(tmp_path))


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"strategy": "fine-tune"}, "Did you mean 'finetune'"),
        ({"class_weight": "balance"}, "Did you mean 'balanced'"),
        ({"frozen_blocks": -1}, "frozen_blocks is -1"),
        ({"layer_decay": 0.5}, "layer_decay is 0.5"),
    ],
)
def test_transfers_out_of_range(flags, error):
    with pytest.raises(ValueError, match=error):
        Transfer(**flags)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"network": "deep"}, "Did you mean 'deep4'"),
        ({"source": "a"}, "folders both"),
        ({"source_layout": "tuap"}, "Did you mean 'tuab'"),
        ({"strategies": "scratch,tune"}, "Did you mean 'finetune'"),
        ({"fractions": "0,1"}, r"shares must be in \(0, 1\]"),
        ({"validation": 1.0}, "--validation is 1.0"),
        ({"band": "33"}, "two frequencies such as 2-33"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
    ],
)
def test_flags_out_of_range(flags, error):
    with pytest.raises(ValueError, match=error):
        Arguments(**flags)


# The recipe

QUICK = {"window": 400, "filters": 2, "final_conv_length": 12, "target_epochs": 1, "fractions": "0.5"}


def test_the_recipe_trains_and_sweeps(nets, tmp_path):
    arguments = Arguments(source_recordings=10, target_recordings=8, test_recordings=10, **QUICK)
    figures = run(arguments, training(tmp_path, num_epochs=1))
    assert [row["recordings"] for row in figures["rows"]] == [4, 4]
    assert figures.keys() == {
        *("source", "zero_shot", "worse_than_scratch", "rows", "validation", "shortcut", "similarity")
    }
    assert json.dumps(figures)
    assert EEGNetwork.from_pretrained(tmp_path / "source" / "network").window == 400


def test_the_recipe_reads_folders(nets, tmp_path):
    pytest.importorskip("mne")
    k = 0
    for hospital, name in (("a", "EEG {}-REF"), ("b", "{}")):
        for label in ("normal", "abnormal"):
            for split, count in (("train", 3), ("eval", 5)):
                for _ in range(count):
                    k += 1
                    path = tmp_path / hospital / label / split / f"{k:04d}.edf"
                    write_edf(path, noise(6, 100, seed=k), [name.format(c) for c in CHANNELS], 100)
    arguments = Arguments(
        source=str(tmp_path / "a"), target=str(tmp_path / "b"), tmin=1.0, band="2-33", validation=0.3, **QUICK
    )
    figures = run(arguments, training(tmp_path / "out", num_epochs=1))
    assert figures["rows"][0]["recordings"] == 4
    assert len(list((tmp_path / "out/cache/source").glob("*.safetensors"))) == 16
    assert EEGNetwork.from_pretrained(tmp_path / "out/source/network").signal.sfreq == 100
