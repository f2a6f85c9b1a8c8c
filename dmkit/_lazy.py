"""Modules that are in `sys.modules` from the start but run only when something is read from them.

Diffusers resolves the class of a saved component from modules that are *already imported*, by the full name
of the defining module. Several of Diffusers' own scheduler modules import scipy at the top. Registering ours
with the standard library's `LazyLoader` satisfies both wishes: `import dmkit` is enough for
`DiffusionPipeline.from_pretrained` to find our classes, and costs next to nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


def register(name: str) -> ModuleType:
    """Puts module `name` into `sys.modules` without running it; the first attribute read runs it."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    return module


def exports(package: str, names_of: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` for a package whose public names live in lazily run submodules.

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
