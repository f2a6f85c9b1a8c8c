"""Steering while sampling: negative prompts for models that run without classifier-free guidance, by NASA and
NAG.

Public names are read from their modules on first use.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "steering": ("Steering", "join_tokens"),
        "processors": ("NASAAttnProcessor2_0", "NASAFluxAttnProcessor", "NASAJointAttnProcessor2_0"),
        "layers": ("SteeredLayers",),
        "nasa": ("NASA",),
        "guider": ("NegativeAwaySteer",),
    },
)
