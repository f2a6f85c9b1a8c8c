"""Neighbouring methods by field. Each is a folder `FIELD/METHOD` whose docstring says in its first paragraph
what the method does and, after a colon, the paper: authors, *title*, where and when, arXiv number.

    from dmkit import auxiliary

    [method.name for method in auxiliary.methods()]

Where a method trains, its module `training` has a dataclass `Arguments` and a function `run(arguments,
training)`, which `scripts/train_auxiliary.py --method NAME` calls with what the command line says.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import unknown_name

if TYPE_CHECKING:
    from ..training.arguments import TrainingArguments

_HOME = Path(__file__).parent
_CREDIT = re.compile(r"(.+?): ([^:*]+, \*.+\*, .+)\.")


@dataclass(frozen=True)
class Method:
    """A neighbouring method.

    Attributes:
        name: of its folder, its page and its recipe.
        field: the folder that it is in.
        summary: what it does, without a full stop.
        paper: authors, title in asterisks, venue, year and arXiv number.
    """

    name: str
    field: str
    summary: str
    paper: str

    @property
    def module(self) -> str:
        """The full name of its package."""
        return f"{__name__}.{self.field}.{self.name}"

    @property
    def trains(self) -> bool:
        """Whether `scripts/train_auxiliary.py` knows it."""
        return (_HOME / self.field / self.name / "training.py").is_file()


def methods() -> list[Method]:
    """All neighbouring methods, by field and name; none of their code is run.

    Raises:
        ValueError: one whose docstring names no paper.
    """
    found = []
    for source in sorted(_HOME.glob("*/*/__init__.py")):
        docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        credit = _CREDIT.fullmatch(" ".join(docstring.split("\n\n")[0].split()))
        if credit is None:
            raise ValueError(f"{source}: the first paragraph is not 'What it does: authors, *title*, where.'")
        found.append(Method(source.parent.name, source.parent.parent.name, *credit.groups()))
    return found


def training(name: str) -> tuple[type, Callable[[Any, TrainingArguments], dict[str, Any]]]:
    """The `Arguments` and the `run` of a method that trains.

    Raises:
        ValueError: an unknown name, with the near one.
    """
    known = {method.name: method for method in methods() if method.trains}
    if name not in known:
        raise unknown_name("auxiliary method", name, known)
    module = importlib.import_module(f"{known[name].module}.training")
    return module.Arguments, module.run


def stage(training: TrainingArguments, name: str, **changes: Any) -> TrainingArguments:
    """The arguments of one training out of several: those of the whole, its own folder inside, and changes.

    A run of several stages that is started again with `resume_from_checkpoint="latest"` passes over those
    that have their last checkpoint.
    """
    values = {**asdict(training), "output_dir": str(Path(training.output_dir) / name), **changes}
    return type(training)(**values)
