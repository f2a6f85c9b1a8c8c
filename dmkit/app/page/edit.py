"""The page of the tab Invert & edit."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ... import zoo
from ..edit import COLUMNS, METHODS, editing, inversion
from ..jobs import Job
from ..limits import STRENGTH
from .parts import (
    NARROW,
    Desk,
    Results,
    connect,
    guidance_slider,
    prompt_box,
    run_buttons,
    steps_slider,
    upload_box,
    uploaded,
)

SHOWN = 3  # held-out pictures of each model to pick from
OTHER_COLOUR = {"red": "blue", "blue": "red", "green": "yellow", "yellow": "green", "black": "white"}


def another(caption: str) -> str:
    """A caption with its first colour changed, or given a background; "" for none."""
    for word in caption.replace(",", " ").split():
        if word in OTHER_COLOUR:
            return caption.replace(word, OTHER_COLOUR[word], 1)
    return f"{caption}, red background" if caption else ""


def held_out() -> list[list[str]]:
    """Pictures that ship: (file, model, what it shows, what it may become)."""
    found = []
    for entry in zoo.list():
        captions = entry.folder / "examples" / "captions.txt"
        lines = captions.read_text(encoding="utf-8").splitlines() if captions.is_file() else []
        for k, path in enumerate(zoo.examples(entry.name)[:SHOWN]):
            caption = lines[k].strip() if k < len(lines) else ""
            found.append([str(path), entry.name, caption, another(caption)])
    return found


def page(desk: Desk) -> None:
    """Builds the tab's components and their events."""
    models = desk.store.names()
    gr.Markdown(
        "An image to noise and back, by DDIM inversion and by BDIA, which is exact up to rounding; or under "
        "another prompt. "
        "Pictures are cropped to the middle square and brought to the model's size."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=NARROW):
            picture = upload_box("Picture", "The picture to invert")
            model = gr.Dropdown(
                models, value="emoji" if "emoji" in models else models[0], label="Model", key="edit-model"
            )
            source = prompt_box(label="What it shows", info="For models that take prompts")
            target = prompt_box(label="What it shall show", info="For Edit")
            gr.Examples(
                held_out(),
                [picture, model, source, target],
                label="Held-out pictures",
                elem_id="dmkit-examples",
                examples_per_page=12,
            )
            steps = steps_slider(20, least=2)
            with gr.Accordion("For Edit", open=True):
                guidance = guidance_slider()
                strength = gr.Slider(
                    *STRENGTH, 0.8, step=0.05, label="Strength", info="Less keeps more of the picture"
                )
                method = gr.Dropdown(list(METHODS), value="bdia", label="Method")
                keep = gr.Checkbox(False, label="Change only where the prompts differ")
            invert, edit, halt = run_buttons("Invert", "Edit")
        with gr.Column(scale=2, min_width=NARROW):
            errors = gr.Dataframe(headers=list(COLUMNS), label="Errors", interactive=False, wrap=True)
            results = Results.build("Original, and what came back")
    outputs = [errors, *results.outputs]

    def invert_work(job: Job, path: Any, model: Any, source: Any, steps: Any) -> list[Any]:
        shown, name = uploaded(desk, path)
        outcome = inversion(
            desk.store, job, model=model, picture=shown, name=name, prompt=source, steps=steps
        )
        return [outcome.figures, *Results.of(desk, outcome)]

    def edit_work(job: Job, path: Any, *values: Any) -> list[Any]:
        shown, name = uploaded(desk, path)
        names = (
            *("model", "source_prompt", "target_prompt", "steps", "guidance_scale", "strength"),
            *("method", "keep"),
        )
        outcome = editing(desk.store, job, picture=shown, name=name, **dict(zip(names, values, strict=True)))
        return [outcome.figures, *Results.of(desk, outcome)]

    connect(desk, "edit", (invert, halt), invert_work, [picture, model, source, steps], outputs, "invert")
    inputs = [picture, model, source, target, steps, guidance, strength, method, keep]
    connect(desk, "edit", (edit, halt), edit_work, inputs, outputs, "edit", submit=[target])
