"""Modules that are in `sys.modules` from the start but run only when one of their names is read.

Diffusers resolves the class of a saved component from modules that are *already imported*, by the full name
of the defining module. Several of Diffusers' own scheduler modules import scipy at the top. A deferred module
satisfies both wishes: `import dmkit` is enough for `DiffusionPipeline.from_pretrained` to find our classes,
and costs next to nothing.

The standard library's `LazyLoader` is not used because its modules run on *any* attribute read: whoever scans
`sys.modules` (`inspect.getmodule` does, and PyTorch calls it while it is being imported itself) would run
ours in the middle of somebody else's import. Here `__file__`, `__spec__` and the like are plain attributes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from threading import RLock
from types import ModuleType
from typing import Any

_lock = RLock()


class DeferredModule(ModuleType):
    """A module that executes when a name that it does not have yet is read from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _lock:
            if type(self) is DeferredModule:
                # An ordinary module from here on, so that reads during the execution do not start it again.
                self.__class__ = ModuleType  # type: ignore[assignment]
                try:
                    self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
                except BaseException:
                    self.__class__ = DeferredModule
                    raise
        return getattr(self, name)


def register(name: str) -> ModuleType:
    """Puts module `name` into `sys.modules` without running it; the first read of a name of it runs it."""
    if name in sys.modules:
        return sys.modules[name]
    spec: ModuleSpec | None = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = DeferredModule(name)
    module.__spec__, module.__loader__ = spec, spec.loader
    module.__file__, module.__package__ = spec.origin, spec.parent
    parent, _, child = name.rpartition(".")
    sys.modules[name] = module
    setattr(sys.modules[parent], child, module)
    return module


def exports(package: str, names_of: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` for a package whose public names live in deferred submodules.

    Args:
        package: the package's `__name__`.
        names_of: submodule (relative dotted name) -> the public names it defines.
    """
    modules = {submodule: register(f"{package}.{submodule}") for submodule in names_of}
    home = {name: modules[submodule] for submodule, names in names_of.items() for name in names}

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(home[name], name)

    return sorted(home), __getattr__
