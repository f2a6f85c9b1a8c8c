"""Exact inversion: the BDIA schedulers, EDICT as their baseline, and `invert`, `reconstruct`, `edit`,
`edit_image`.

The scheduler modules are registered by the parent package, as components that a saved pipeline may name. What
works on whole pipelines is no such component and is imported when it is first asked for.
"""

import importlib
from typing import Any

_HOME = {
    "invert": "inversion",
    "reconstruct": "inversion",
    "Regenerated": "inversion",
    "edit": "editing",
    "edit_image": "editing",
    "difference_mask": "editing",
    "EditedImage": "editing",
    "BDIALatentPair": "pair",
    "encode": "images",
    "decode": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
