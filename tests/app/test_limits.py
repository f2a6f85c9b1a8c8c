import math
import pickle
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dmkit.app import limits
from dmkit.errors import FileFormatError

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def told(check, *arguments):
    """What the check gives, or the text of its error."""
    try:
        return check(*arguments), None
    except ValueError as error:
        return None, str(error)


@given(ANYTHING)
def test_whole_gives_a_whole_number_within_bounds_or_an_error(value):
    found, message = told(limits.whole, "Steps", value, limits.STEPS)
    if message is None:
        assert type(found) is int
        assert 1 <= found <= 200
        assert found == value
    else:
        assert message.startswith("Steps must be a whole number from 1 to 200, not ")
        assert len(message) < 120


@given(ANYTHING)
def test_number_gives_a_finite_number_within_bounds_or_an_error(value):
    found, message = told(limits.number, "Guidance", value, limits.GUIDANCE)
    if message is None:
        assert type(found) is float
        assert math.isfinite(found)
        assert 0 <= found <= 20
    else:
        assert message.startswith("Guidance must be a number from 0 to 20, not ")


@given(ANYTHING)
def test_text_gives_one_short_line_or_an_error(value):
    found, message = told(limits.text, "The prompt", value)
    if message is None:
        assert found == value.strip()
        assert found.isprintable()
    else:
        assert message.startswith("The prompt ")


def test_text_is_bounded():
    assert limits.text("The prompt", " x" * 150) == (" x" * 150).strip()
    with pytest.raises(ValueError, match="may have 300 characters, not 301"):
        limits.text("The prompt", "x" * 301)
    with pytest.raises(ValueError, match="is empty"):
        limits.text("The prompt", "  ")


def test_choice_names_the_near_one():
    with pytest.raises(ValueError, match=r"Did you mean 'emoji'"):
        limits.choice("model", "emojy", ["emoji", "fashion"])
    with pytest.raises(ValueError, match="Unknown model"):
        limits.choice("model", ["emoji"], ["emoji"])


def test_pixels_of_a_run_are_bounded():
    limits.pixels(1024, 1024, 4)
    with pytest.raises(ValueError, match="at most 4"):
        limits.pixels(1024, 1024, 5)


@pytest.mark.parametrize("path", ["../secret.txt", "link.txt", "missing.txt", "", None, 3, "a\0b"])
def test_no_file_outside_the_roots(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="not one that was uploaded"):
        limits.inside(str(root / path) if isinstance(path, str) else path, [root])
    (root / "own.txt").write_text("own")
    assert limits.inside(root / "own.txt", [root]) == (root / "own.txt").resolve()


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checked)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pictures_are_judged_by_their_content(tmp_path):
    good = tmp_path / "a.txt"
    Image.new("RGB", (5, 4), "red").save(good, format="PNG")
    assert limits.picture(good).size == (5, 4)
    bad = {
        "pickle.png": pickle.dumps({"a": 1}),
        "text.png": b"no picture",
        "empty.png": b"",
        "cut.png": good.read_bytes()[:40],
        "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError, match="not a picture that can be read") as raised:
            limits.picture(tmp_path / name)
        assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize(("width", "height"), [(6000, 6000), (60_000, 60_000)])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(bomb(width, height))
    with pytest.raises(FileFormatError, match=r"megapixels|not a picture"):
        limits.picture(tmp_path / "bomb.png")
