"""The page of the demo: one module a tab, over the functions of `dmkit.app`."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from ..neighbours import Card, cards
from . import edit, erase, neighbours, one_step, sample, train
from .parts import RUNS, Desk

TITLE = "dmkit"
# Fonts of the visitor's own machine: a theme's default ones would be fetched.
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Consolas", "Menlo", "monospace")
CSS = """
.dmkit-pictures img, .dmkit-upload img, #dmkit-examples img { image-rendering: pixelated; }
.dmkit-upload img { width: 100%; height: 100%; object-fit: contain; }
/* Labels beside the pictures, not on them; no empty space below. */
.dmkit-pictures .grid-wrap { min-height: 0; max-height: none !important; height: auto; overflow: visible; }
.dmkit-pictures .grid-container { padding-top: 28px; }
.dmkit-pictures .thumbnail-item { height: auto; aspect-ratio: auto; }
.dmkit-pictures .caption-label { position: static; max-width: none; white-space: normal; }
.dmkit-slider .image-container { padding-top: 36px; }
/* Examples by their pictures: what else they hold is seen once one is chosen. */
#dmkit-examples thead, #dmkit-examples td:nth-child(n+2) { display: none; }
#dmkit-examples tbody { display: flex; flex-wrap: wrap; }
#dmkit-examples tr, #dmkit-examples td { border: 0; padding: 4px; background: none; }
/* Code is measured while still hidden: numbers would stand beside other lines, the box be too high. */
.cm-gutters { display: none !important; }
.cm-scroller { min-height: 0 !important; max-height: 480px !important; }
/* The names of files whole, and no button to remove what cannot be removed. */
.dmkit-files .file-preview { table-layout: auto; }
.dmkit-files .file-preview .stem { max-width: none; overflow: visible; }
.dmkit-files .label-clear-button, footer .divider { display: none; }
.label-wrap { text-align: start; }
.gradio-container { width: 100%; max-width: 1280px !important; margin: auto; }
@media (max-width: 500px) { .tab-container button { padding: 0 8px; } }
"""


def theme() -> gr.themes.Base:
    """Gradio's default, with local fonts; light or dark as the visitor's machine is."""
    return gr.themes.Default(font=SANS, font_mono=MONO)


def build(desk: Desk, neighbouring: list[Card] | None = None) -> gr.Blocks:
    """The demo over a desk. A tab without anything to show is left out.

    Args:
        desk: what the tabs share.
        neighbouring: cards of the last tab; those of the package by default.
    """
    neighbouring = cards() if neighbouring is None else neighbouring
    tabs: dict[str, Callable[[], None]] = {
        "Sample": lambda: sample.page(desk),
        "Invert & edit": lambda: edit.page(desk),
        "Erase": lambda: erase.page(desk),
        "One step": lambda: one_step.page(desk),
        "Train": lambda: train.page(desk),
    }
    if neighbouring:
        tabs["Neighbours"] = lambda: neighbours.page(neighbouring)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(
            "# dmkit\nSample in few steps, invert exactly, erase, and train: small models, on this machine."
        )
        with gr.Tabs():
            for name, page in tabs.items():
                with gr.Tab(name, id=name):
                    page()

        def leave(request: gr.Request) -> None:
            desk.jobs.stop(request.session_hash or "")

        demo.unload(leave)
    demo.queue(default_concurrency_limit=4, max_size=32)
    for function in demo.fns.values():
        if function.concurrency_id == RUNS:
            function.concurrency_limit = 2
    return demo
