"""The models of the demo: loaded when first asked for, once, and shared by all tabs and visitors.

Networks are shared, pipelines are not: each run gets a pipeline object of its own, so that no run meets the
scheduler of another. What patches a network for a while (adapters, NASA, the inversion of pixel-space models)
takes it alone; plain sampling shares it.

Networks are built one at a time: while Diffusers and Transformers load a model they replace functions of
torch for the whole process, and whatever is built meanwhile in another thread comes out without weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Lock
from typing import Any

from .. import zoo
from .._files import load_json
from ..errors import FileFormatError


class SharedLock:
    """Many at once, or one alone; who wants it alone is not overtaken for ever."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._sharing, self._alone, self._wanted = 0, False, 0

    @contextmanager
    def held(self, alone: bool, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Waits; `check` is called meanwhile and may raise to give up."""
        with self._changed:
            self._wanted += alone
            try:
                while self._alone or (self._sharing if alone else self._wanted):
                    check()
                    self._changed.wait(0.1)
                self._alone, self._sharing = alone, self._sharing + (not alone)
            finally:
                self._wanted -= alone
        try:
            yield
        finally:
            with self._changed:
                self._alone, self._sharing = False, self._sharing - (not alone)
                self._changed.notify_all()


@dataclass
class _Model:
    """A model that may be loaded already."""

    source: str
    folder: Path
    pipe: Any = None
    lock: SharedLock = field(default_factory=SharedLock)


class ModelStore:
    """Models of the zoo, and pipelines that lie in an allowed folder.

    Args:
        root: every folder under it (two levels deep) with a `model_index.json` can be chosen; links out of it
            are not followed. None: the zoo alone.
        device: where to compute; CUDA if there is one, else the CPU.

    Attributes:
        building: to hold while networks or adapters are built.
    """

    def __init__(self, root: str | Path | None = None, device: str | None = None):
        self.root, self.device = None if root is None else Path(root), device
        self.building = Lock()
        self._models: dict[str, _Model] = {}
        self._lock = Lock()

    def names(self, text: bool | None = None, one_step: bool | None = None) -> list[str]:
        """Models that can be chosen; with `text`, only those that take a prompt (True) or none (False); with
        `one_step`, only those whose card has that tag, or has not.
        """
        with self._lock:
            found = {entry.name: _Model(entry.name, entry.folder) for entry in zoo.list()}
            for index in self._local():
                name = index.parent.relative_to(self.root or "").as_posix()
                # A model of the zoo keeps its name.
                found.setdefault(name, _Model(str(index.parent), index.parent))
            self._models = {name: self._models.get(name, model) for name, model in found.items()}
            models = list(self._models.items())
        return [
            name
            for name, model in models
            if text in (None, _takes_text(model.folder)) and one_step in (None, zoo.is_one_step(model.folder))
        ]

    def _local(self) -> list[Path]:
        if self.root is None or not self.root.is_dir():
            return []
        real = self.root.resolve()
        # Hidden folders are left out: `.unfinished-…` is just being written.
        depths = ("[!.]*/model_index.json", "[!.]*/[!.]*/model_index.json")
        indices = [index for depth in depths for index in self.root.glob(depth)]
        return sorted(index for index in indices if index.resolve().is_relative_to(real))

    def find(self, name: str) -> tuple[str, Path]:
        """What `dmkit.zoo.load` takes for the model of this name, and its folder.

        Raises:
            ValueError: no model of this name can be chosen; the message names the near one.
        """
        from .limits import choice

        known = choice("model", name, self.names())
        model = self._models[known]
        return model.source, model.folder

    def takes_text(self, name: str) -> bool:
        """Whether the model of this name needs a prompt.

        Raises:
            ValueError: as `find`.
        """
        return _takes_text(self.find(name)[1])

    @contextmanager
    def borrow(
        self, name: str, *, alone: bool = False, check: Callable[[], None] = lambda: None
    ) -> Iterator[Any]:
        """A pipeline over the shared networks, with a scheduler and a tokenizer of its own.

        Args:
            name: one of `names`.
            alone: for what patches the networks; nobody else has them meanwhile.
            check: called while waiting; raises to give up.

        Raises:
            ValueError: as `find`.
            FileFormatError: it cannot be loaded.
        """
        from ..zoo.opening import open_pipeline

        source, _ = self.find(name)
        model = self._models[name]
        with self.building:
            if model.pipe is None:
                model.pipe = open_pipeline(source, self.device)
        with model.lock.held(alone, check):
            pipe = copy.copy(model.pipe)
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
            for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
                # Fast tokenizers refuse to be used by two threads at once.
                if getattr(pipe, part, None) is not None:
                    setattr(pipe, part, copy.deepcopy(getattr(pipe, part)))
            yield pipe

    def opening(self, name: str) -> str:
        """The line of Python that opens the model of this name, after `import dmkit.zoo`."""
        source, _ = self.find(name)
        moved = f'.to("{self.device}")' if self.device not in (None, "cpu") else ""
        return f"pipe = dmkit.zoo.load({source!r}){moved}"


def card(folder: Path) -> dict[str, Any]:
    """The front matter of a model's card; empty where there is none, or none that is YAML."""
    try:
        return zoo.card(folder)
    except FileFormatError:
        return {}


def _takes_text(folder: Path) -> bool:
    try:
        return "tokenizer" in load_json(folder / "model_index.json")
    except (FileFormatError, json.JSONDecodeError):
        return False  # said when it is loaded


def found_adapters(roots: Sequence[Path]) -> dict[str, Path]:
    """Adapters by name: files `*/NAME.safetensors` under the roots, of which the first one wins."""
    found: dict[str, Path] = {}
    for root in roots:
        for file in sorted(root.glob("[!.]*/*.safetensors")):
            if file.resolve().is_relative_to(root.resolve()):
                found.setdefault(file.stem, file)
    return found
