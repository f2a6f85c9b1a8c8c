"""Fewer steps: distilling a text-to-image pipeline into one step, by SwiftBrush or PG-SB.

Public names are read from their modules on first use.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "process": ("Process", "one_step_scheduler"),
        "vsd": ("Kappa", "fake_loss", "guided", "vsd_gradient", "vsd_loss"),
        "teachers": ("LoRA", "Teachers"),
        "clip": ("CLIPLoss", "CLIPScorer"),
        "task": ("Distillation", "OneStepTask"),
        "merging": ("merge_students",),
    },
)
