"""`dmkit models`: what ships."""

from __future__ import annotations


def models() -> None:
    """List the models and samplers that are at hand.

    Example:

        dmkit models
    """
    from rich.console import Console
    from rich.table import Table

    from .. import zoo
    from ..schedulers.registry import BASES, PREFIXES, SAMPLERS

    console = Console()
    shipped = Table("name", "pipeline", "what it is", title="Models")
    for entry in zoo.list():
        shipped.add_row(entry.name, entry.pipeline, entry.description)
    console.print(shipped)
    console.print("A folder in Diffusers' layout, or a hub id, serves as a model too.\n")
    samplers = Table("name", "what it is", "for models that are", title="Samplers")
    prefixed = {prefix + name for prefix in PREFIXES for name in BASES}
    for name, sampler in SAMPLERS.items():
        if name not in prefixed:
            samplers.add_row(name, sampler.what, sampler.family)
    console.print(samplers)
    console.print(f"{', '.join(BASES)} also come with a prefix:")
    for prefix, (addition, _) in PREFIXES.items():
        console.print(f"  {prefix}{next(iter(BASES))}: {addition}")
