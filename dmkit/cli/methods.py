"""`dmkit methods`: what dmkit can do, by wing."""

from __future__ import annotations

# Wing -> method -> (what it does, where its page is in docs/methods).
_WINGS = {
    "schedulers": {
        "Time-Shift": ("better samples in few steps, without training", "time_shift"),
        "BDIA": ("exact inversion of a sampler, and editing by it", "bdia"),
    },
    "guidance": {
        "NASA, NAG": ("negative prompts for models of one or few steps", "nasa"),
    },
    "adapters": {
        "SPM": ("erase a concept with a small file that loads like a LoRA", "spm"),
    },
    "training": {
        "ANT": ("train against negative transfer between noise levels", "ant"),
    },
    "models": {
        "ScaleLong": ("scale the long skips of a denoiser", "scalelong"),
    },
    "distillation": {
        "SNOOPI (PG-SB), SwiftBrush": ("distil a text-to-image model into one step", "snoopi"),
    },
}


def methods() -> None:
    """List the methods of dmkit, the neighbouring ones too.

    Example:

        dmkit methods
    """
    from rich.console import Console
    from rich.table import Table

    from .. import auxiliary

    rows = Table("method", "what it does", "where", "page", title="Methods")
    for wing, known in _WINGS.items():
        for name, (what, page) in known.items():
            rows.add_row(name, what, f"dmkit.{wing}", f"docs/methods/{page}.md")
    for method in auxiliary.methods():
        where = method.module.rpartition(".")[0]
        rows.add_row(method.name, method.summary, where, f"docs/methods/{method.name}.md")
    Console().print(rows)
