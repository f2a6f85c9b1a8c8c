"""The bounds of every input of the demo, and how they are checked: a request need not come from the page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.pictures import upright
from ..errors import FileFormatError, unknown_name

STEPS, IMAGES, SEED = (1, 200), (1, 16), (0, 2**31 - 1)
GUIDANCE, STRENGTH, FACTOR = (0.0, 20.0), (0.05, 1.0), (-2.0, 4.0)
PROMPT_LENGTH = 300
PIXELS_MADE = 4 * 1024 * 1024  # of all images of one run
PIXELS_READ = 24 * 1024 * 1024  # of an uploaded picture, before it is decoded
ADAPTER_BYTES = 64 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def number(what: str, value: Any, bounds: tuple[float, float]) -> float:
    """A finite number within bounds.

    Raises:
        ValueError: anything else; the message names `what` and the bounds.
    """
    least, most = bounds
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not least <= value <= most:  # which NaN is not
        raise ValueError(f"{what} must be a number from {least:g} to {most:g}, not {_short(value)}.")
    return float(value)


def whole(what: str, value: Any, bounds: tuple[int, int]) -> int:
    """A whole number within bounds; 3.0 counts as 3, which is how JSON's numbers may arrive.

    Raises:
        ValueError: anything else; the message names `what` and the bounds.
    """
    least, most = bounds
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not least <= value <= most or value != int(value):
        raise ValueError(f"{what} must be a whole number from {least} to {most}, not {_short(value)}.")
    return int(value)


def text(what: str, value: Any, required: bool = True) -> str:
    """A line of text, without the space around it.

    Raises:
        ValueError: not text, too long, with control characters, or missing.
    """
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {_short(value)}.")
    value = value.strip()
    if len(value) > PROMPT_LENGTH:
        raise ValueError(f"{what} may have {PROMPT_LENGTH} characters, not {len(value)}.")
    if not value.isprintable():
        raise ValueError(f"{what} may not hold line breaks or control characters.")
    if required and not value:
        raise ValueError(f"{what} is empty.")
    return value


def choice(what: str, value: Any, known: Iterable[str]) -> str:
    """One of the known names.

    Raises:
        ValueError: another one; the message names the near one.
    """
    known = list(known)
    if value not in known:
        raise unknown_name(what, value[:40] if isinstance(value, str) else _short(value), known)
    return value


def listed(what: str, value: Any) -> list[Any]:
    """A list; None is an empty one.

    Raises:
        ValueError: anything else; the message names `what`.
    """
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a list, not {_short(value)}.")
    return list(value)


def pixels(height: int, width: int, images: int) -> None:
    """Refuses a run that makes too much.

    Raises:
        ValueError: more pixels than one run may make.
    """
    if height * width * images > PIXELS_MADE:
        most = PIXELS_MADE // (height * width)
        raise ValueError(f"{images} images of {width}x{height} are too many at once; at most {most}.")


def inside(path: Any, roots: Iterable[Path]) -> Path:
    """The real path of an existing file that lies in one of the roots, links followed.

    Raises:
        ValueError: elsewhere, or no file. The message does not say which.
    """
    real = Path(path).resolve() if isinstance(path, str | Path) and "\0" not in str(path) else None
    if real is None or not real.is_file() or not any(real.is_relative_to(root.resolve()) for root in roots):
        raise ValueError("This file is not one that was uploaded here or that ships with the demo.")
    return real


def picture(path: Path) -> Image.Image:
    """An uploaded picture, judged by its content and not by its name; upright, on white.

    Raises:
        FileFormatError: not a picture of a known format, a damaged one, or one of too many pixels, which is
            refused before it is decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > PIXELS_READ:
                raise FileFormatError(
                    f"The picture is {file.width}x{file.height}; at most {PIXELS_READ // 1024**2} megapixels."
                )
            return upright(file)
    except FileFormatError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kinds = ", ".join(FORMATS)
        raise FileFormatError(f"The file is not a picture that can be read ({kinds}).") from error


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
