"""`dmkit models`: what ships."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def models() -> None:
    """List the models and samplers that are at hand.

    Example: dmkit models
    """
    from .. import zoo
    from ..schedulers.registry import SAMPLERS

    console = Console()
    shipped = Table("name", "pipeline", "what it is", title="Models")
    for entry in zoo.list():
        shipped.add_row(entry.name, entry.pipeline, entry.description)
    console.print(shipped)
    samplers = Table("name", "scheduler", "what it is", title="Samplers")
    for name, sampler in SAMPLERS.items():
        samplers.add_row(name, sampler.scheduler, sampler.what)
    console.print(samplers)
    console.print("A folder in Diffusers' layout, or a hub id, serves as a model too.")
