"""Samplers by short name, for the command line, the benchmarks and the demo.

A name is a base (`ddim`, `dpm++`, …), with `ts-` before it for Time-Shift, `es-` for epsilon scaling or
`ts-es-` for both; or a method with a name of its own (`bdia`, `obelm`, `edict`). Models of flow matching and
of EDM have their own: `flow`, `ts-flow`, `bdia-flow`, `edm`, `ts-edm`, `bdia-edm`.

Classes are looked up when a sampler is built, so that the list of names costs nothing.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import unknown_name

VP, FLOW, EDM = "variance-preserving", "flow-matching", "EDM"
_MARK = {VP: "beta_start", FLOW: "shift", EDM: "sigma_data"}
"""The key of a scheduler's config that tells the kind of noise schedule a model was trained on."""


@dataclass(frozen=True)
class Sampler:
    """A named sampler.

    Attributes:
        scheduler: name of its class, in `dmkit.schedulers` or in `diffusers`.
        what: one line about it.
        settings: config entries that make it what its name says.
        family: the noise schedules that it is for.
        least_steps: the fewest steps that it can run in.
    """

    scheduler: str
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    family: str = VP
    least_steps: int = 1


BASES = {
    "ddim": Sampler("DDIMScheduler", "DDIM, deterministic"),
    "ddpm": Sampler("DDPMScheduler", "DDPM, ancestral"),
    "pndm": Sampler("PNDMScheduler", "S-PNDM, linear multistep", {"skip_prk_steps": True}),
    "f-pndm": Sampler(
        "PNDMScheduler", "F-PNDM, with Runge-Kutta starts", {"skip_prk_steps": False}, least_steps=4
    ),
    "dpm++": Sampler(
        "DPMSolverMultistepScheduler",
        "DPM-Solver++ 2M",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
    "deis": Sampler("DEISMultistepScheduler", "DEIS"),
    "euler": Sampler("EulerDiscreteScheduler", "Euler in the variance-exploding form"),
}
PREFIXES: dict[str, tuple[str, dict[str, Any]]] = {
    "ts-": ("Time-Shift", {}),
    "es-": ("epsilon scaling", {"time_shift_window": 0, "epsilon_scaling": 0.01}),
    "ts-es-": ("Time-Shift and epsilon scaling", {"epsilon_scaling": 0.01}),
}
SAMPLERS: dict[str, Sampler] = {
    **BASES,
    **{
        prefix + name: Sampler(
            f"TimeShift{base.scheduler}",
            f"{base.what}; {addition}",
            {**base.settings, **settings},
            least_steps=base.least_steps,
        )
        for prefix, (addition, settings) in PREFIXES.items()
        for name, base in BASES.items()
    },
    # On a "leading" grid the last step is far shorter than the one before it, where gamma should be near 0.
    "bdia": Sampler(
        "BDIADDIMScheduler", "BDIA-DDIM, reversible", {"gamma": 0.5, "timestep_spacing": "trailing"}
    ),
    "bdia-dpm": Sampler(
        "BDIADPMSolverMultistepScheduler",
        "DPM-Solver++ 2M with BDIA's correction",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "obelm": Sampler("BDIADDIMScheduler", "O-BELM, reversible", {"solver": "obelm"}),
    "edict": Sampler("EDICTScheduler", "EDICT, reversible, two network calls a step"),
    "flow": Sampler("FlowMatchEulerDiscreteScheduler", "Euler", family=FLOW),
    "ts-flow": Sampler("TimeShiftFlowMatchEulerDiscreteScheduler", "Euler with Time-Shift", family=FLOW),
    "bdia-flow": Sampler(
        "BDIAFlowMatchEulerDiscreteScheduler", "Euler with BDIA, reversible", {"gamma": 0.5}, FLOW
    ),
    "edm": Sampler("EDMEulerScheduler", "EDM's Euler", family=EDM),
    "ts-edm": Sampler("TimeShiftEDMEulerScheduler", "EDM's Euler with Time-Shift", family=EDM),
    "bdia-edm": Sampler("BDIAEDMScheduler", "EDM's Euler with BDIA's correction", family=EDM),
}


def find(name: str) -> Sampler:
    """The sampler of this name.

    Raises:
        ValueError: there is none; the message names the near one.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def scheduler_class(name: str) -> type:
    """The scheduler class of the sampler of this name."""
    scheduler = find(name).scheduler
    ours = importlib.import_module(__package__)
    return getattr(ours if scheduler in ours.__all__ else importlib.import_module("diffusers"), scheduler)


def known_settings(name: str) -> set[str]:
    """The config keys that the sampler of this name knows."""
    return set(inspect.signature(scheduler_class(name).__init__).parameters) - {"self"}  # type: ignore[misc]


def build(name: str, config: Mapping[str, Any], ignore_foreign: bool = False, **overrides: Any) -> Any:
    """The scheduler of a named sampler on a model's noise schedule.

    Args:
        name: one of `SAMPLERS`.
        config: the config of the model's own scheduler, `pipe.scheduler.config`.
        ignore_foreign: leave out overrides that the class does not know, instead of refusing them.
        overrides: config entries (`time_shift_window=40`), which win over the config and the sampler's own.

    Raises:
        ValueError: an unknown sampler or setting (the message names the near one), a sampler for another kind
            of noise schedule than the model's, or a value that the class refuses.
    """
    sampler, known = find(name), known_settings(name)
    if _MARK[sampler.family] not in config:
        kind = next((family for family, key in _MARK.items() if key in config), "unknown")
        raise ValueError(
            f"Sampler {name!r} is for {sampler.family} noise schedules; this model's is {kind} "
            f"({config.get('_class_name', 'a config without a class')})."
        )
    for key in overrides:
        if key not in known and not ignore_foreign:
            raise unknown_name(f"setting of {name}", key, known)
    chosen = {key: value for key, value in {**sampler.settings, **overrides}.items() if key in known}
    # Keys that the class does not know are common (each solver has its own) and no reason for a warning.
    fitting = {key: value for key, value in config.items() if key in known or key.startswith("_")}
    try:
        return scheduler_class(name).from_config(fitting, **chosen)  # type: ignore[attr-defined]
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in chosen.items()) or "the model's settings"
        raise ValueError(f"{name} cannot be built with {given}: {str(error).splitlines()[0]}") from error


def build_all(names: Iterable[str], config: Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """The schedulers of several samplers; each takes those overrides that it knows.

    Raises:
        ValueError: as `build`; no names; or an override that none of them knows.
    """
    names = list(names)
    if not names:
        raise ValueError(f"Which sampler? Known: {', '.join(sorted(SAMPLERS))}.")
    known = set().union(*map(known_settings, names))
    for key in overrides:
        if key not in known:
            raise unknown_name(f"setting of {', '.join(names)}", key, known)
    return {name: build(name, config, ignore_foreign=True, **overrides) for name in names}


def check_steps(name: str, scheduler: Any, num_inference_steps: int) -> None:
    """Raises what the scheduler that `build` gave would raise at its first step, before anything is sampled.

    Raises:
        ValueError: too few or too many steps, or settings that do not fit them; the message says which
            sampler.
    """
    if num_inference_steps < (least := find(name).least_steps):
        raise ValueError(f"{name} takes at least {least} steps, not {num_inference_steps}.")
    if scheduler.config.get("use_dynamic_shifting"):
        return  # its grid depends on the size of the image, which the pipeline knows
    try:
        scheduler.set_timesteps(num_inference_steps)
    except ValueError as error:
        raise ValueError(f"{name} at {num_inference_steps} steps: {error}") from error
