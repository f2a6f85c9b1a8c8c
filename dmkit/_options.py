"""Components that are one of Diffusers' own plus a few options.

Diffusers' `from_config` keeps only the keys that it finds in the signature of `__init__`; a subclass with
`**kwargs` would silently run on the parent's defaults. Instead of spelling out every parent's arguments once
more, the subclass gets an `__init__` whose signature is the parent's plus ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def init_with_options(
    parent: type, options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> Callable[..., None]:
    """An `__init__` that takes the parent's arguments and `options` (keyword-only, with these defaults).

    The parent gets keywords only: values passed by position would be taken for defaults by the next
    `from_config`. The options are registered in the config, then `self._check_options()` is called.

    Args:
        parent: the component's class at Diffusers.
        options: name -> default of our own options.
        defaults: name -> default of parent's arguments whose default is another one here.
    """
    changed = dict(defaults or {})
    inherited = inspect.signature(parent.__init__)  # type: ignore[misc]
    theirs = [p.replace(default=changed.get(p.name, p.default)) for p in inherited.parameters.values()]
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=d) for name, d in options.items()]
    signature = inherited.replace(parameters=[*theirs, *ours])

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        by_default = [name for name in (*changed, *options) if name not in given]
        chosen = {name: given.pop(name, default) for name, default in options.items()}
        parent.__init__(self, **{**changed, **given})  # type: ignore[misc]
        # Another class's `from_config` prefers its own default to a value that nobody chose.
        unchosen = [*self.config.get("_use_default_values", []), *by_default]
        self.register_to_config(**chosen, _use_default_values=unchosen)
        self._check_options()

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__
