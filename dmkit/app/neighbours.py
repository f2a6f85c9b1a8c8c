"""The tab Neighbours: a card for each method under `dmkit/auxiliary`, from its docstring and its page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..auxiliary import methods

DOCS = Path(__file__).parents[2] / "docs"
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)\n?")  # of the page; the card has its own


@dataclass(frozen=True)
class Card:
    """What is shown of a method; what it does not have is empty.

    Attributes:
        name: `FIELD/METHOD`.
        what: it does, and its paper.
        example: the first Python of its page.
        table: Markdown, rendered from what was measured.
        picture: of its results.
    """

    name: str
    what: str
    example: str = ""
    table: str = ""
    picture: Path | None = None


def cards(docs: Path = DOCS) -> list[Card]:
    """One for each method, by field and name."""
    return [
        _card(method.field, method.name, f"{method.summary}: {method.paper}.", docs) for method in methods()
    ]


def _card(field: str, method: str, what: str, docs: Path) -> Card:
    page, table = docs / "methods" / f"{method}.md", docs / "results" / f"{method}.md"
    example = _EXAMPLE.search(page.read_text(encoding="utf-8")) if page.is_file() else None
    pictures = [
        *sorted((docs / "images").glob(f"{method}*.png")),
        *sorted(table.parent.glob(f"{method}*.png")),
    ]
    return Card(
        f"{field}/{method}",
        what,
        example.group(1) if example else "",
        _PICTURE.sub("", table.read_text(encoding="utf-8")) if table.is_file() else "",
        pictures[0] if pictures else None,
    )
