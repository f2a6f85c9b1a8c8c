"""Recordings of EEG, from files to windows; metrics; the hospitals that are made."""

import builtins
import json

import numpy as np
import pytest
import torch
from eeg_cases import SMALL, WINDOW, Net, network, noise, recordings, write_edf
from safetensors.torch import save_file

from dmkit.auxiliary.timeseries.eeg_transfer import (
    CHANNELS,
    EEGNetwork,
    EEGPreprocessor,
    EEGWindows,
    Recordings,
    Signal,
    check_disjoint,
    evaluate,
    find,
    find_bids,
    find_nmt,
    find_tuab,
    hospital,
    linear_cka,
    predict_proba,
    prepare,
    shortcut,
    similarity,
    windows_from_raws,
)
from dmkit.auxiliary.timeseries.eeg_transfer.hospitals import coloured
from dmkit.auxiliary.timeseries.eeg_transfer.preprocessing import import_mne, plain_name
from dmkit.errors import FileFormatError, MissingDataError, MissingExtraError
from dmkit.metrics.classification import balanced_accuracy

mne = pytest.importorskip("mne")


def raw(values: np.ndarray, names=CHANNELS, sfreq: float = 250) -> "mne.io.RawArray":
    """Of microvolts."""
    info = mne.create_info(list(names), sfreq, "eeg")
    return mne.io.RawArray(1e-6 * values, info, verbose="ERROR")


# Preprocessing


def test_six_minutes_become_five_at_the_new_rate():
    x = raw(noise(360, 250))
    made = EEGPreprocessor(normalize="none")(x)
    assert made.get_data().shape == (21, 30_000)
    assert made.info["sfreq"] == 100
    assert type(made) is type(x)
    assert x.n_times == 90_000  # as it was
    np.testing.assert_allclose(made.get_data().mean(0), 0, atol=1e-6)  # the reference
    standard = EEGPreprocessor()(x).get_data()
    np.testing.assert_allclose(standard.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(1), 1, atol=1e-6)


def test_clipping_comes_before_resampling_and_in_microvolts():
    t = np.arange(10 * 100) / 100
    x = raw(np.tile(2000 * np.sin(2 * np.pi * 3 * t), (21, 1)), sfreq=100)
    made = EEGPreprocessor(tmin=0, reference="none", normalize="none")(x).get_data()
    assert made.max() == pytest.approx(800)
    assert made.min() == pytest.approx(-800)
    assert (
        EEGPreprocessor(tmin=0, clip_uv=5000, reference="none", normalize="none")(x).get_data().max() > 1900
    )


def test_a_sine_keeps_its_peak_and_a_band_takes_another_away():
    t = np.arange(60 * 250) / 250
    values = np.zeros((21, len(t)))
    values[4] = 50 * np.sin(2 * np.pi * 10 * t) + 50 * np.sin(2 * np.pi * 40 * t)
    for band, kept in ((None, [10, 40]), ((2.0, 33.0), [10])):
        quiet = EEGPreprocessor(tmin=0, reference="none", normalize="none", band=band)
        with pytest.warns(UserWarning, match="no signal in A1, A2, C3, C4, F3"):
            x = quiet(raw(values)).get_data()[4]
        power = np.abs(np.fft.rfft(x)) / len(x)
        f = np.fft.rfftfreq(len(x), 1 / 100)
        assert sorted(f[power > 5].round(2)) == kept


def test_channels_are_picked_by_name_and_put_in_order():
    values = noise(4, 100)
    values[3] += 100
    names = [
        f"EEG {'T7' if c == 'T3' else c.title()}-{'LE' if k % 2 else 'REF'}" for k, c in enumerate(CHANNELS)
    ]
    turned = raw(np.concatenate([values[::-1], 9 * noise(4, 100, 1)]), [*names[::-1], "EKG1"], 100)
    settings = {"tmin": 0, "reference": "none", "normalize": "none"}
    made = EEGPreprocessor(**settings)(turned)
    assert made.ch_names == list(CHANNELS)
    np.testing.assert_allclose(made.get_data(), values, atol=1e-6)
    assert [plain_name(n) for n in ("EEG FP1-REF", "Fp1", "eeg a1-le", "P8", "O2")] == [
        "FP1",
        "FP1",
        "A1",
        "T6",
        "O2",
    ]


def test_recordings_shorter_than_the_crop_are_kept_as_far_as_they_go():
    made = EEGPreprocessor()(raw(noise(90, 100), sfreq=100))
    assert made.n_times == 3000
    assert EEGPreprocessor(duration=None)(raw(noise(90, 100), sfreq=100)).n_times == 3000


def test_a_channel_without_a_signal_is_named_and_stays_finite():
    values = noise(4, 100)
    values[20] = 7.0
    with pytest.warns(UserWarning, match="The recording has no signal in T6"):
        made = EEGPreprocessor(tmin=0, reference="none")(raw(values, sfreq=100)).get_data()
    assert np.isfinite(made).all()
    assert not made[20].any()


def test_recordings_that_are_refused():
    short, bad = raw(noise(4, 100), sfreq=100), noise(4, 100)
    bad[2, 7] = np.nan
    with pytest.raises(ValueError, match=r"a\.edf has 4 s; nothing is left after the first 60 s"):
        EEGPreprocessor()(short, "a.edf")
    with pytest.raises(ValueError, match="values that are not finite"):
        EEGPreprocessor(tmin=0)(raw(bad, sfreq=100))
    with pytest.raises(ValueError, match="has no channel T5, T6; there are A1"):
        EEGPreprocessor(tmin=0)(raw(noise(4, 100)[:19], CHANNELS[:19], 100))
    with pytest.raises(ValueError, match="has C3 more than once: C3, EEG C3-REF"):
        EEGPreprocessor(tmin=0)(raw(noise(4, 100, 22), [*CHANNELS, "EEG C3-REF"], 100))


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"tmin": -1}, "tmin is -1"),
        ({"duration": 0}, "duration is 0"),
        ({"sfreq": 0}, "sfreq is 0"),
        ({"reference": "averge"}, "Did you mean 'average'"),
        ({"normalize": "z"}, "Unknown normalize 'z'"),
    ],
)
def test_settings_out_of_range(flags, error):
    with pytest.raises(ValueError, match=error):
        EEGPreprocessor(**flags)


def test_without_mne_the_extra_is_named(monkeypatch):
    there = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda n, *a, **k: there("no_such_module" if n == "mne" else n, *a, **k)
    )
    with pytest.raises(MissingExtraError, match=r"MNE is needed for this; .*'dmkit\[eeg\]'"):
        import_mne()


# Files


def corpus(root, layout: str) -> None:
    """Tiny recordings of 4 s in a corpus's layout."""
    names = [f"EEG {c}-REF" for c in CHANNELS] if layout == "tuab" else [c.title() for c in CHANNELS]
    k = 0
    for label in ("normal", "abnormal"):
        for split, count in (("train", 3), ("eval", 2)):
            for person in range(count):
                k += 1
                name = f"aaaaa{label[0]}{split[0]}{person}"
                where = {
                    "tuab": f"v3.0.1/edf/{split}/{label}/01_tcp_ar/{name}_s001_t000.edf",
                    "nmt": f"nmt_scalp_eeg_dataset/{label}/{split}/{k:07d}.edf",
                    "bids": f"sub-{k:02d}/eeg/sub-{k:02d}_task-rest_eeg.edf",
                }[layout]
                write_edf(root / where, noise(4, 200, seed=k), names, 200)


def test_corpora_are_found(tmp_path):
    for layout, finder in (("tuab", find_tuab), ("nmt", find_nmt)):
        corpus(tmp_path / layout, layout)
        entries = find(tmp_path / layout, layout)
        assert entries == finder(tmp_path / layout)
        assert len(entries) == 10
        assert sorted({(e.label, e.split) for e in entries}) == [
            (0, "eval"),
            (0, "train"),
            (1, "eval"),
            (1, "train"),
        ]
        assert sum(e.split == "train" for e in entries) == 6
    assert {e.subject for e in find_tuab(tmp_path / "tuab")} >= {"aaaaant0", "aaaaaae1"}
    assert find_nmt(tmp_path / "nmt")[0].subject in ("0000006", "0000009")
    # Two recordings of one participant.
    old = tmp_path / "tuab/v3.0.1/edf/train/normal/01_tcp_ar/aaaaant0_s001_t000.edf"
    old.with_name("aaaaant0_s002_t000.edf").write_bytes(old.read_bytes())
    assert sum(e.subject == "aaaaant0" for e in find_tuab(tmp_path / "tuab")) == 2
    with pytest.raises(ValueError, match="Did you mean 'tuab'"):
        find(tmp_path, "tuap")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="has no recordings of NMT"):
        find_nmt(tmp_path / "empty")


def test_a_folder_in_bids_is_found(tmp_path):
    corpus(tmp_path, "bids")
    with pytest.raises(MissingDataError, match=r"There is no .*participants\.tsv"):
        find_bids(tmp_path)
    table = tmp_path / "participants.tsv"

    def rows(value: str, part: str = "eval") -> str:
        body = [
            f"sub-{k:02d}\t{'normal' if k < 6 else value}\t{part if k in (4, 5) else ''}"
            for k in range(1, 11)
        ]
        return "\n".join(["participant_id\tpathological\tsplit", *body]) + "\n"

    for value in ("abnormal", "1", "True"):
        table.write_text(rows(value))
        entries = find_bids(tmp_path)
        assert [e.label for e in entries] == [0] * 5 + [1] * 5
    assert [e.split for e in entries].count("eval") == 2
    assert entries[0].subject == "sub-01"
    table.write_text(rows("ill"))
    with pytest.raises(FileFormatError, match="has the class 'ill'; known: normal, abnormal"):
        find_bids(tmp_path)
    table.write_text(rows("1", "dev"))
    with pytest.raises(FileFormatError, match="has 'dev' as part of sub-04"):
        find_bids(tmp_path)
    with pytest.raises(FileFormatError, match="has no column 'dx'; there are participant_id"):
        find_bids(tmp_path, label="dx")
    table.write_text("participant_id\tpathological\n")
    with pytest.raises(FileFormatError, match="has no participant sub-01"):
        find_bids(tmp_path)


def test_recordings_are_preprocessed_once_into_a_folder_and_read_in_windows(tmp_path, monkeypatch):
    corpus(tmp_path / "raw", "tuab")
    entries = [e for e in find_tuab(tmp_path / "raw") if e.split == "train"]
    made = EEGPreprocessor(tmin=1.0)
    kept = prepare(entries, made, tmp_path / "cache")
    assert kept.lengths == [300] * 6
    expected = made(mne.io.read_raw(entries[2].path, verbose="ERROR")).get_data()
    np.testing.assert_allclose(kept.read(2, 40, 90), expected[:, 40:90], atol=1e-5)
    assert kept.signal.preprocessing == made.to_json()
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.safetensors")}
    with monkeypatch.context() as patch:  # nothing is read again
        patch.setattr(mne.io, "read_raw", None)
        again = prepare(entries, made, tmp_path / "cache")
    assert torch.equal(again.read(2, 0, 300), kept.read(2, 0, 300))
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*")}
    assert prepare(entries, EEGPreprocessor(tmin=2.0), tmp_path / "cache").lengths == [200] * 6
    write_edf(
        entries[0].path.with_name("aaaaanew_s001_t000.edf"),
        noise(2, 200),
        [f"EEG {c}-REF" for c in CHANNELS],
        200,
    )
    more = [e for e in find_tuab(tmp_path / "raw") if e.split == "train"]
    with pytest.warns(UserWarning, match="1 of 7 recordings have less than 3 s"):
        assert len(prepare(more, made, tmp_path / "cache", shortest=3.0)) == 6
    entries[0].path.write_bytes(b"0       nothing")
    with pytest.raises(FileFormatError, match="is no recording that MNE can read"):
        prepare(entries, made, tmp_path / "other")


# Recordings and windows


def test_five_minutes_have_five_windows_and_a_last_one():
    whole = Recordings([torch.zeros(3, 30_000)], [0], ["a"], SMALL)
    windows = EEGWindows(whole, 6000, 5794)
    assert [start for _, start, _ in windows.starts] == [0, 5794, 11588, 17382, 23176]
    last = EEGWindows(whole, 6000, 5794, keep_last=True)
    assert last.starts[-1] == (0, 24_000, 824)
    assert last[5]["x"].shape == (3, 6000)
    assert len(EEGWindows(whole, 6000, 6000, keep_last=True)) == 5
    with pytest.raises(ValueError, match=r"Recording 0 \(a\) has 30000 samples; a window has 30001"):
        EEGWindows(whole, 30_001, 1)
    with pytest.raises(ValueError, match="window is 0"):
        EEGWindows(whole, 0, 1)


def test_windows_of_recordings_of_mne():
    x = [raw(noise(6, 100, seed=k), sfreq=100) for k in range(2)]
    windows = windows_from_raws(x, [0, 1], ["a", "b"], window=200, preprocessor=EEGPreprocessor(tmin=1.0))
    assert len(windows) == 4
    assert windows[3]["y"] == 1
    assert windows[3]["x"].dtype == torch.float32


def test_shares_and_splits_are_of_participants():
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    subjects = ["a", "a", "b", "c", "d", "e", "f", "f", "g", "h"]
    whole = Recordings([torch.zeros(3, 30)] * 10, labels, subjects, SMALL)
    assert whole.share(1.0, seed=3).subjects == subjects
    for seed in range(5):
        small, half = whole.share(0.2, seed), whole.share(0.5, seed)
        assert set(small.subjects) < set(half.subjects)
        assert sorted(set(small.labels)) == [0, 1]
        assert len(small.participants()) == 2
        assert all(len(rows) == subjects.count(s) for s, rows in half.participants().items())
        train, valid = whole.split(0.3, seed)
        check_disjoint(train=train, validation=valid)
        assert len(train) + len(valid) == 10
        assert set(valid.labels) == {0, 1}
    with pytest.raises(ValueError, match="Participant a is in both train and test"):
        check_disjoint(train=whole.select([0]), test=whole.select([1]))
    with pytest.raises(ValueError, match=r"share of participants is 0; it must be in \(0, 1\]"):
        whole.share(0)
    with pytest.raises(ValueError, match="One participant is abnormal"):
        whole.select([0, 2, 6]).split(0.5)


def test_recordings_that_do_not_fit(tmp_path):
    x = torch.zeros(3, 30)
    with pytest.raises(ValueError, match="One label and one subject for each"):
        Recordings([x], [0, 1], ["a"], SMALL)
    with pytest.raises(ValueError, match=r"Recording 0 \(a\) has the shape \(2, 30\); \(3, T\)"):
        Recordings([x[:2]], [0], ["a"], SMALL)
    with pytest.raises(ValueError, match="Label 2 is none of 2 classes"):
        Recordings([x], [2], ["a"], SMALL)
    with pytest.raises(ValueError, match=r"Recording 0 \(a\) has values that are not finite"):
        Recordings([x / 0], [0], ["a"], SMALL)
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="missing, truncated or not a safetensors"):
        Recordings([tmp_path / "a.safetensors"], [0], ["a"], SMALL)
    save_file({"x": x}, tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match="has no tensor 'eeg'"):
        Recordings([tmp_path / "a.safetensors"], [0], ["a"], SMALL)


def test_contracts_name_the_first_difference():
    own = Signal(("C3", "C4", "CZ"), 50.0, preprocessing=json.dumps({"tmin": 60, "sfreq": 100}))
    for other, error in (
        (
            Signal(("C4", "C3", "CZ"), 50.0),
            "have 'C4' as channel 0; 'C3' is expected .the same channels in another",
        ),
        (Signal(("C3", "C4", "O1"), 50.0), "have 'O1' as channel 2; 'CZ' is expected"),
        (Signal(CHANNELS[:19], 50.0), "have 19 channels; 3 are expected"),
        (Signal(own.ch_names, 100.0), r"have sfreq 100\.0; 50\.0"),
        (Signal(own.ch_names, 50.0, ("a", "b")), "have classes"),
        (Signal(own.ch_names, 50.0, preprocessing='{"tmin": 0, "sfreq": 100}'), "otherwise: tmin 0 for 60"),
    ):
        with pytest.raises(ValueError, match=error):
            own.check(other)
    assert Signal.from_json(json.loads(json.dumps(own.to_json()))) == own
    with pytest.raises(ValueError, match="Channels must have different names"):
        Signal(("C3", "C3"))
    with pytest.raises(ValueError, match="At least two classes"):
        Signal(classes=("a",))
    with pytest.raises(ValueError, match="sfreq is 0"):
        Signal(sfreq=0)


# Predictions and metrics


def test_balanced_accuracy():
    labels = torch.tensor([1] * 10 + [0] * 100)
    predicted = torch.tensor([1] * 9 + [0] + [0] * 50 + [1] * 50)
    assert balanced_accuracy(predicted, labels) == pytest.approx(0.70)
    with pytest.raises(ValueError, match=r"Expected \(N,\) classes both"):
        balanced_accuracy(predicted, labels[:3])


def test_a_recording_has_the_mean_over_its_positions_each_once():
    net, some = network(), recordings(3, times=53)
    whole = predict_proba(net, some, batch_size=2)
    x = torch.stack([some.read(k, 0, 53) for k in range(3)])
    with torch.no_grad():
        expected = net(x).double().softmax(1).mean(2)  # 45 positions; the windows have 16 + 16 + 13 new ones
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)
    assert net.training


def test_a_strided_network_has_windows_that_do_not_overlap():
    strided = Net()
    strided.second.stride = 2
    net, some = EEGNetwork(strided, SMALL, WINDOW, stride=WINDOW), recordings(2, times=53)
    assert net.predictions == 8
    x = torch.stack([some.read(k, 0, 53) for k in range(2)])
    with torch.no_grad():  # two windows, and of a last one, five samples later, two positions of eight
        parts = [net(x[..., s : s + WINDOW]).double().softmax(1) for s in (0, 24, 29)]
    expected = torch.cat([*parts[:2], parts[2][..., -2:]], dim=2).mean(2)
    torch.testing.assert_close(predict_proba(net, some), expected, atol=1e-6, rtol=0)


def test_evaluation_and_f1():
    class Ones(Net):
        def forward(self, x):
            return super().forward(x)[:, :, 0] * 0 + torch.tensor([0.0, 1.0])

    net = EEGNetwork(Ones(), SMALL, WINDOW)
    assert net.predictions == 1
    found = evaluate(net, recordings(4))
    assert found == {"balanced_accuracy": 0.5, "accuracy": 0.5, "f1": pytest.approx(2 / 3)}


def test_linear_cka():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=generator)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1, abs=1e-6)
    other = torch.randn(4000, 8, generator=generator)
    assert linear_cka(x, other) == pytest.approx(8 / 4000, rel=0.6)
    assert linear_cka(x, other[:, :3]) == pytest.approx(linear_cka(other[:, :3], x))
    with pytest.raises(ValueError, match="Two representations of the same inputs"):
        linear_cka(x, x[:5])
    with pytest.raises(ValueError, match="is the same for all inputs"):
        linear_cka(x, torch.ones(4000, 2))


def test_similarity_and_shortcut():
    net, some = network(), recordings(12)
    assert similarity(net, net.copied(), some) == pytest.approx([1, 1])
    far = recordings(12, seed=5)
    far = Recordings([x + 4 for x in far.data], far.labels, far.subjects, SMALL)
    assert shortcut(net, some, far, folds=3) > 0.9
    assert shortcut(net, some, recordings(12, seed=6), folds=3) < 0.8
    with pytest.raises(ValueError, match="5 folds need as many recordings"):
        shortcut(net, some.select([0, 1]), some)


# Hospitals


def test_hospitals_are_as_documented():
    source, target = hospital("source", 80, seconds=10), hospital("target", 80, seconds=10)
    assert (len(source), source.lengths[0], sum(source.labels)) == (80, 1000, 40)
    f = torch.fft.rfftfreq(1000, 1 / 100)
    peaks = {}
    for name, part in (("source", source), ("target", target)):
        x = torch.stack(part.data)
        torch.testing.assert_close(x.std(2), torch.ones(80, 21), atol=1e-4, rtol=0)
        power = torch.fft.rfft(x).abs().square().mean(1)
        band = (f > 6) & (f < 12.5)
        strongest = f[band][power[:, band].argmax(1)]
        peaks[name] = [float(strongest[torch.tensor(part.labels) == y].median()) for y in (0, 1)]
    assert peaks["source"] == pytest.approx([10, 8], abs=0.3)
    assert peaks["target"] == pytest.approx([9.7, 7.7], abs=0.35)
    again, turned = hospital("source", 6), hospital("source", 6, disagree=True)
    assert all(torch.equal(a, b) for a, b in zip(again.data, turned.data, strict=True))
    assert [1 - y for y in again.labels] == turned.labels
    assert sum(hospital("target", 20, abnormal=0.15).labels) == 3
    with pytest.raises(ValueError, match="Did you mean 'source'"):
        hospital("sorce", 3)
    with pytest.raises(ValueError, match="0 recordings of"):
        hospital("source", 0)


def test_noise_has_its_colour():
    x = coloured(torch.randn(200, 2000, generator=torch.Generator().manual_seed(0)), 0.8)
    power = torch.fft.rfft(x).abs().square().mean(0)[1:]
    k = torch.arange(1, 1001).float()
    slope = np.polyfit(k.log().numpy(), power.log().numpy(), 1)[0]
    assert slope == pytest.approx(-0.8, abs=0.02)
    torch.testing.assert_close(x.std(1), torch.ones(200))
