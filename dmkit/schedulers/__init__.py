"""Samplers: Time-Shift, epsilon scaling, BDIA and EDICT, each a Diffusers scheduler.

Public names are read from their modules on first use; the modules are registered at import, which is what
`DiffusionPipeline.from_pretrained` needs to find them.
"""

from .._lazy import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "time_shift.vp": ("TimeShiftDDIMScheduler", "TimeShiftDDPMScheduler", "TimeShiftPNDMScheduler"),
        "time_shift.sigma": (
            "TimeShiftDPMSolverMultistepScheduler",
            "TimeShiftUniPCMultistepScheduler",
            "TimeShiftDEISMultistepScheduler",
            "TimeShiftEulerDiscreteScheduler",
        ),
        "time_shift.continuous": ("TimeShiftEDMEulerScheduler", "TimeShiftFlowMatchEulerDiscreteScheduler"),
        "time_shift.per_sample": ("per_sample_timesteps",),
        "tuning": ("TimeShiftTuning", "tune_time_shift"),
        "bdia.ddim": ("BDIADDIMScheduler", "BDIADDIMInverseScheduler"),
        "bdia.flow": ("BDIAFlowMatchEulerDiscreteScheduler", "BDIAFlowMatchEulerDiscreteInverseScheduler"),
        "bdia.edm": ("BDIAEDMScheduler",),
        "bdia.dpm": ("BDIADPMSolverMultistepScheduler",),
        "bdia.edict": ("EDICTScheduler", "EDICTInverseScheduler"),
        "bdia": (
            "BDIALatentPair",
            "decode",
            "difference_mask",
            "edit",
            "edit_image",
            "encode",
            "invert",
            "reconstruct",
        ),
    },
)
