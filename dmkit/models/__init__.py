"""Denoisers that train more steadily: ScaleLong's scaled long skip connections on Diffusers' UNets and
HunyuanDiT, on a U-ViT, and on any network with `up_blocks`.

Public names are read from their modules on first use; the modules are registered at import, which is what
`DiffusionPipeline.from_pretrained` needs to find the models.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "scaling": ("LongSkipScaler", "SkipScaling"),
        "skips": ("apply_skip_scaling", "load_skip_scaling", "remove_skip_scaling", "save_skip_scaling"),
        "unet": ("ScaleLongUNet2DModel", "ScaleLongUNet2DConditionModel", "ScaleLongHunyuanDiT2DModel"),
        "uvit": ("UViTModel",),
        "folding": ("fold_skip_scaling",),
        "stability": ("StabilityMonitor", "StabilityReport", "stability_report", "plot_stability"),
    },
)
