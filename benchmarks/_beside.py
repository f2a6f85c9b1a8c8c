"""What a method's page says beside a paper: our figures from the result file, others as fixed text.

A benchmark whose module has `beside(content) -> Beside` gets two tables into `docs/methods/NAME.md`, between
the two marks; `benchmarks/render.py` writes them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _tables import number, table

from dmkit._files import atomic_file

PAGES = Path(__file__).parents[1] / "docs" / "methods"
START = "<!-- from the result file, by benchmarks/render.py -->"
END = "<!-- to here -->"


@dataclass(frozen=True)
class Beside:
    """Figures of one experiment in three places.

    Attributes:
        rows: what, measured here, in the reference's small experiment, in the paper.
        settings: how the three differ.
        bars: what was asked -> (measured, whether it is met, or a word for neither).
        why: what was asked -> a sentence about what it says.
        more: Markdown behind the tables.
    """

    rows: Sequence[tuple[str, str, str, str]]
    settings: str
    bars: Mapping[str, Sequence[Any]]
    why: Mapping[str, str]
    more: str = ""

    def text(self) -> str:
        """Markdown.

        Raises:
            ValueError: a bar without a sentence, or a sentence without a bar.
        """
        if odd := {*self.bars} ^ {*self.why}:
            raise ValueError(f"Bars and sentences do not go together: {', '.join(sorted(odd))}.")
        rows = [[bar, number(v[0]), _met(v[1]), self.why[bar]] for bar, v in self.bars.items()]
        return (
            table(["", "measured here", "reference small experiment", "paper"], self.rows)
            + f"\n{self.settings}\n\n"
            + table(["asked", "measured", "", "what it says"], rows)
            + self.more
        )


def _met(found: bool | str) -> str:
    """A third answer, such as "not shown", is said as it is."""
    return found if isinstance(found, str) else "met" if found else "**missed**"


def block(found: Beside) -> str:
    """What lies between the marks of a page, marks and all."""
    return f"{START}\n\n{found.text()}\n{END}"


def fill(name: str, found: Beside) -> None:
    """Writes the tables into a page.

    Raises:
        ValueError: a page without the two marks.
    """
    page = PAGES / f"{name}.md"
    text = page.read_text("utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page} lacks {START} or {END}.")
    with atomic_file(page) as draft:
        draft.write_text(before + block(found) + after, encoding="utf-8")
