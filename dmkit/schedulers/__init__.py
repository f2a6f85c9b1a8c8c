"""Samplers: Time-Shift, epsilon scaling, BDIA and EDICT, each a Diffusers scheduler.

Public names are read from their modules on first use; the modules are registered at import, which is what
`DiffusionPipeline.from_pretrained` needs to find them.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {},
)
