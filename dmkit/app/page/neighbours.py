"""The page of the tab Neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from ..neighbours import Card
from .parts import NARROW


def page(cards: Sequence[Card]) -> None:
    """Builds a card for each method."""
    for card in cards:
        gr.Markdown(f"### {card.name}\n{card.what}")
        if not (card.picture or card.example or card.table):
            continue
        with gr.Accordion("Example and results", open=len(cards) == 1):
            with gr.Row():
                if card.picture is not None:
                    gr.Image(
                        str(card.picture),
                        label="What was measured",
                        alt_text=f"Results of {card.name}",
                        interactive=False,
                        min_width=NARROW,
                        buttons=["fullscreen"],
                    )
                if card.example:
                    gr.Code(
                        card.example, language="python", label="Example", interactive=False, wrap_lines=True
                    )
            if card.table:
                gr.Markdown(card.table)
