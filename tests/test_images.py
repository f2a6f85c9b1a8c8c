import json

import pytest
import torch
from PIL import Image

from dmkit import images


def test_pixels_round_and_clip():
    tensor = torch.tensor([[[[-2.0, -1.0, 0.0, 1.0, 2.0]]]])
    assert images.to_uint8(tensor).flatten().tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(images.to_uint8(every.float() / 127.5 - 1), every)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grid_places_images_in_reading_order(channels, mode):
    tiles = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, channels, 4, 4)
    sheet = images.grid(tiles, columns=2, scale=2, gap=1)
    assert (sheet.mode, sheet.size) == (mode, (17, 26))
    grey = sheet.convert("L")
    assert [grey.getpixel((9 * (k % 2) + 4, 9 * (k // 2) + 4)) for k in range(5)] == [0, 64, 128, 191, 255]
    with pytest.raises(ValueError, match=r"takes images \(N, 1 or 3, H, W\), not \(4, 4\)"):
        images.grid(torch.zeros(4, 4))


def test_png_carries_its_parameters(tmp_path):
    path = images.save_png(Image.new("L", (4, 4)), tmp_path / "a" / "x.png", {"prompt": "жар", "steps": 10})
    assert json.loads(Image.open(path).text["parameters"]) == {"prompt": "жар", "steps": 10}
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_side_by_side_needs_a_label_each():
    picture = Image.new("L", (20, 10))
    sheet = images.side_by_side([picture, picture], ["a", "b\nc"])
    assert sheet.mode == "RGB"
    assert sheet.height > 10 + 2 * 18
    with pytest.raises(ValueError, match="2 pictures need as many labels, not 1"):
        images.side_by_side([picture, picture], ["a"])
