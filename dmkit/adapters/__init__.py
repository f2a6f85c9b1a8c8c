"""Small files that add or remove something: SPM, one-dimensional adapters that erase a concept.

Public names are read from their modules on first use.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "spm.weights": ("SPMLayer", "SPMMetadata", "SPMWeights"),
        "spm.files": ("read_spm", "save_spm"),
        "spm.merging": ("merge_spms",),
        "spm.pipeline": ("SPM",),
        "spm.modular": ("ModularSPM", "TransportedDenoising"),
    },
)
