"""Methods of ours under the signatures of Diffusers' own, and what an option may be."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeGuard


def mirrored(method: Callable[..., Any], parent_method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` under the signature of `parent_method`: pipelines look for `eta`, `generator`, `sigmas`
    there.
    """

    @functools.wraps(parent_method)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return forward


def takes_anything(method: Callable[..., Any]) -> bool:
    """Whether a method's signature ends in `**kwargs`, so that it says nothing about what it accepts."""
    kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def is_real(value: object) -> TypeGuard[float]:
    """A finite number that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
