"""Steering while sampling: negative prompts for models that run without classifier-free guidance, by NASA and
NAG. The attention processors are those of `dmkit.attention`.

Public names are read from their modules on first use.
"""

from typing import Any

from .. import attention
from .._lazy import exports

_own, _read = exports(
    __name__,
    {"nasa": ("NASA",), "guider": ("NegativeAwaySteer",), "modular": ("SteeredDenoising",)},
)
__all__ = sorted([*_own, *attention.__all__])


def __getattr__(name: str) -> Any:
    return getattr(attention, name) if name in attention.__all__ else _read(name)
