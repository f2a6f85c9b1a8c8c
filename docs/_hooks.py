"""What MkDocs does not do by itself: pages link to files of the repository, which become part of the site.

Pages are written for whoever reads them in the repository, so their links are relative paths that may leave
this folder. Such a file gets a place of its own, `repository/PATH`, and the links are rewritten to it. A link
to nothing stays as it is, and MkDocs refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUTSIDE = "repository"
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```[^\S\n]*$)", re.MULTILINE | re.DOTALL)
# What a browser would fetch by itself from elsewhere; an `<a href>` it would not.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\shref=\"?https?://"
)


def _place(path: Path) -> str | None:
    """Where a file of the repository is in the site's sources; None if it is not there, or not of it."""
    path = path.resolve()
    if path.is_dir():
        path /= "README.md"
    if not path.is_file() or not path.is_relative_to(ROOT):
        return None
    inside = path.is_relative_to(DOCS)
    return str(path.relative_to(DOCS)) if inside else f"{OUTSIDE}/{path.relative_to(ROOT)}"


def _links(text: str, change: Callable[[str], str]) -> str:
    """The page with each link outside of code blocks as `change` has it."""
    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(lambda link: link[1] + change(link[2]) + link[3], part) for part in parts[::2]]
    return "".join(parts)


def _add_linked(files: Files, config: Any, page: Path) -> None:
    def add(link: str) -> str:
        target = page.parent / link
        place = _place(target)
        if place is not None and place.startswith(f"{OUTSIDE}/") and files.get_file_from_path(place) is None:
            source = ROOT / place.removeprefix(f"{OUTSIDE}/")
            files.append(File.generated(config, place, abs_src_path=str(source)))
            if source.suffix == ".md":
                _add_linked(files, config, source)
        return link

    _links(page.read_text(encoding="utf-8"), add)


def on_files(files: Files, *, config: Any) -> Files:
    """Adds what pages link to outside of this folder, and what those pages link to."""
    for file in list(files.documentation_pages()):
        _add_linked(files, config, Path(file.abs_src_path))
    _fill_nav(config, files)
    return files


def _fill_nav(config: Any, files: Files) -> None:
    """An entry of the navigation that ends with `/` stands for all pages of its folder without an entry."""
    entries = [entry for section in config.nav for entry in _entries(section)]
    for section in config.nav:
        for title, inner in section.items():
            if isinstance(inner, str) and inner.endswith("/"):
                pages = sorted(file.src_uri for file in files.documentation_pages())
                section[title] = [p for p in pages if posixpath.dirname(p) == inner[:-1] and p not in entries]
    config.nav[:] = [section for section in config.nav if all(section.values())]


def _entries(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    inner = item.values() if isinstance(item, dict) else item
    return [entry for part in inner for entry in _entries(part)]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links by the places of the site."""
    here, folder = Path(page.file.abs_src_path).parent, posixpath.dirname(page.file.src_uri)

    def change(link: str) -> str:
        place = _place(here / link)
        return link if place is None else posixpath.relpath(place, folder or ".")

    return _links(markdown, change)


def on_post_build(*, config: Any) -> None:
    """The site fetches nothing from elsewhere.

    Raises:
        PluginError: a page does.
    """
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        found = FETCHED.search(page.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{page} would fetch from another host: {found[0]}")
