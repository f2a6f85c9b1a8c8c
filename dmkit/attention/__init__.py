"""Attention processors that read a prompt and a negative prompt in one call (NASA and NAG), and putting them
into a denoiser; for sampling (`dmkit.guidance`) and for training.

Public names are read from their modules on first use.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "steering": ("Steering", "join_tokens"),
        "processors": ("NASAAttnProcessor2_0", "NASAFluxAttnProcessor", "NASAJointAttnProcessor2_0"),
        "layers": ("SteeredLayers",),
    },
)
