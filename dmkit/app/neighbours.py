"""The tab Neighbours: a card for each method under `dmkit/auxiliary`, from its docstring and its page."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Card:
    """What is shown of a method; what it does not have is empty.

    Attributes:
        name: `FIELD/METHOD`.
        what: the first paragraph of its docstring.
        example: the first Python of its page.
        table: Markdown, rendered from what was measured.
        picture: of its results.
    """

    name: str
    what: str
    example: str = ""
    table: str = ""
    picture: Path | None = None


def cards(package: Path = PACKAGE) -> list[Card]:
    """One for each method, by name; none where there is no auxiliary method."""
    found = []
    for field in sorted(path.parent for path in (package / "auxiliary").glob("*/__init__.py")):
        for method in sorted(field.iterdir()):
            module = method / "__init__.py" if method.is_dir() else method
            if module.suffix != ".py" or method.name.startswith("_") or not module.is_file():
                continue
            docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            found.append(_card(field.name, method.stem, docstring.split("\n\n")[0], package.parent / "docs"))
    return found


def _card(field: str, method: str, what: str, docs: Path) -> Card:
    page, table = docs / "methods" / f"{method}.md", docs / "results" / f"{method}.md"
    example = _EXAMPLE.search(page.read_text(encoding="utf-8")) if page.is_file() else None
    pictures = [
        *sorted((docs / "images").glob(f"{method}*.png")),
        *sorted(table.parent.glob(f"{method}*.png")),
    ]
    return Card(
        f"{field}/{method}",
        " ".join(what.split()),
        example.group(1) if example else "",
        table.read_text(encoding="utf-8") if table.is_file() else "",
        pictures[0] if pictures else None,
    )
