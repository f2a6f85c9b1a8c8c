import json

import numpy as np
import pytest
import torch
from data_files import png
from PIL import Image

from dmkit import data
from dmkit.data.pictures import fit, open_picture, resize, to_tensor
from dmkit.errors import FileFormatError, MissingDataError


def grey(level: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), level, np.uint8)


def write(folder, files: dict[str, np.ndarray]) -> None:
    for name, pixels in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(pixels))


def levels(dataset) -> list[int]:
    return dataset.images_uint8()[:, 0, 0, 0].tolist()


def test_a_flat_folder_in_the_order_of_its_paths(tmp_path):
    write(tmp_path, {"b.png": grey(2), "a.PNG": grey(1), ".hidden.png": grey(9)})
    (tmp_path / "notes.txt").write_text("not a picture")
    found = data.load(tmp_path)
    assert levels(found) == [1, 2]
    assert (found.channels, found.resolution, found.labels, found.captions) == (1, 8, None, None)
    assert data.load(tmp_path, channels=3, resolution=4)[0]["images"].shape == (3, 4, 4)


def test_subfolders_are_labels(tmp_path):
    write(tmp_path, {"dog/1.png": grey(1), "cat/deep/2.png": grey(2), "dog/0.png": grey(0)})
    found = data.load(tmp_path)
    assert found.label_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 1, 1]
    assert levels(found) == [2, 0, 1]


def test_splits_are_subfolders(tmp_path):
    write(tmp_path, {"train/a/1.png": grey(1), "test/a/2.png": grey(2)})
    assert levels(data.load(tmp_path, "test")) == [2]
    assert data.load(tmp_path, "train").label_names == ("a",)
    with pytest.raises(ValueError, match=r"Unknown split of .* 'validation'.* Known: test, train"):
        data.load(tmp_path, "validation")
    with pytest.raises(ValueError, match="Known: train"):
        data.load(tmp_path / "train", "test")


def test_captions_from_metadata_in_its_order(tmp_path):
    write(tmp_path, {"a.png": grey(1), "b.png": grey(2), "unlisted.png": grey(3)})
    rows = [{"file_name": "b.png", "text": "two"}, {"file_name": "a.png", "text": "öne"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = data.load(tmp_path)
    assert (levels(found), found.captions) == ([2, 1], ["two", "öne"])
    assert data.load(tmp_path, caption_column="other").captions is None


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        (
            '{"file_name": "../secret.png"}',
            FileFormatError,
            "line 1: '../secret.png' leads out of the folder",
        ),
        ('{"file_name": "link.png"}', FileFormatError, "leads out of the folder"),
        ('{"file_name": "/etc/passwd"}', FileFormatError, "leads out of the folder"),
        ('{"file_name": "gone.png"}', MissingDataError, "there is no .*gone.png"),
        ('{"name": "a.png"}', FileFormatError, "line 1: expected a JSON object with file_name"),
        ('{"file_name": 3}', FileFormatError, "expected a JSON object with file_name"),
        ("[1]", FileFormatError, "expected a JSON object with file_name"),
        ('{"file_name"', FileFormatError, "expected a JSON object with file_name"),
        ('{"file_name": "a.png", "text": 3}', FileFormatError, "'text' is int, not text"),
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png"}', FileFormatError, "1 of 2 pictures"),
    ],
)
def test_bad_metadata_is_named(tmp_path, line, error, message):
    write(tmp_path, {"secret.png": grey(7), "set/a.png": grey(1)})
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set" / "metadata.jsonl").write_text(line)
    with pytest.raises(error, match=message):
        data.load(tmp_path / "set")


def test_empty_folders_and_broken_pictures_are_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"holds no pictures"):
        data.load(tmp_path)
    write(tmp_path, {"a.png": grey(1)})
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    (tmp_path / "b.png").write_bytes(png(noise)[:-400])
    (tmp_path / "c.png").write_bytes(b"not a picture")
    found = data.load(tmp_path)
    for index, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(FileFormatError, match=f"{name} is not a picture"):
            found[index]


def test_fit_crops_the_middle(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, :10], pixels[:, 10:20], pixels[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    square = to_tensor(fit(Image.fromarray(pixels), 10, 3))
    assert torch.equal(square, torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None, None].expand(3, 10, 10))


def test_transparency_and_palettes_go_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0] = (10, 20, 30, 255)
    palette = Image.fromarray(rgba).quantize(4)
    grey_alpha = Image.fromarray(rgba).convert("LA")
    for name, picture in (("rgba", Image.fromarray(rgba)), ("p", palette), ("la", grey_alpha)):
        picture.save(tmp_path / f"{name}.png")
        pixels = to_tensor(open_picture(tmp_path / f"{name}.png"))
        assert pixels[:, 3, 3].tolist() == [255] * 3, name
        assert pixels[:, 0, 0].max() < 40, name


def test_exif_rotation_is_undone(tmp_path):
    picture = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 8, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "x.png", exif=exif)
    assert to_tensor(open_picture(tmp_path / "x.png"))[0, :, 0].tolist() == [255] * 8 + [0] * 8


def test_to_tensor_is_channels_first():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    assert np.array_equal(to_tensor(Image.fromarray(pixels)).numpy(), pixels.transpose(2, 0, 1))
    assert to_tensor(Image.fromarray(pixels[..., 0].copy())).shape == (1, 3, 5)


def test_resize_keeps_constants_and_halves_by_averaging():
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert resize(flat, 5).unique().tolist() == [77]
    # Away from the border a triangle filter leaves a linear ramp's values at the new pixel centres.
    inner = resize(ramp, 4)[0, 0, 1:3, 1:3].float()
    assert torch.allclose(inner, torch.tensor([[22.5, 24.5], [38.5, 40.5]]), atol=0.5)


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["x", "y"]), text=datasets.Value("string")
    )
    rows = {
        "image": [Image.fromarray(grey(level, 8, 10)) for level in (5, 6, 7)],
        "label": [1, 0, 1],
        "text": ["five", "six", "seven"],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_saved_datasets_of_the_library(tmp_path, table):
    import datasets

    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "many")
    for found in (data.load(tmp_path / "one"), data.load(tmp_path / "many", "test")):
        assert levels(found) == [5, 6, 7]
        assert (found.resolution, found.channels, found.label_names) == (8, 1, ("x", "y"))
        assert found[1]["labels"] == 0
        assert found[2]["captions"] == "seven"
    with pytest.raises(ValueError, match="has no split 'train'; it has test"):
        data.load(tmp_path / "many")
    table.select_columns(["text"]).save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="no image column; its columns are text"):
        data.load(tmp_path / "text")


def test_parquet_folders(tmp_path, table, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train-00000.parquet"))
    assert levels(data.load(tmp_path / "set", channels=3)) == [5, 6, 7]


def test_a_hub_name_without_a_network(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(MissingDataError, match=r"owner/name could not be loaded .*save_to_disk"):
        data.load("owner/name")
