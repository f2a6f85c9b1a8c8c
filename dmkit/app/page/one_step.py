"""The page of the tab One step."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..jobs import Job
from ..one_step import MODES, TIMES, compare, steer, students
from .parts import (
    NARROW,
    Desk,
    Results,
    connect,
    guidance_slider,
    images_slider,
    prompt_box,
    run_buttons,
    seed_box,
    steps_slider,
)

NO_STUDENT = (
    "No distilled one-step model is here. What you see is the ordinary model at few steps without "
    "guidance: its images are rough, and not what a one-step student would give."
)


def page(desk: Desk) -> None:
    """Builds the tab's components and their events."""
    distilled = students(desk.store)
    models = distilled or desk.store.names(text=True)
    gr.Markdown("A student of one step against its teacher. " if distilled else f"**{NO_STUDENT}**")
    with gr.Row():
        with gr.Column(scale=1, min_width=NARROW):
            model = gr.Dropdown(models, value=models[0] if models else None, label="Model")
            prompt = prompt_box("a dress")
            images, seed = images_slider(4), seed_box()
            few = gr.Slider(
                1, 20, 1 if distilled else 4, step=1, label="Few steps", interactive=not distilled
            )
            with gr.Accordion("Against many steps", open=True):
                steps = steps_slider(20, label="Many steps")
                guidance = guidance_slider()
                comparing = run_buttons("Compare")
            with gr.Accordion("Steer away from a negative prompt", open=True):
                negative = prompt_box("a blue dress", label="Negative prompt")
                mode = gr.Radio(
                    list(MODES),
                    value="nasa",
                    label="Way",
                    info="NAG bounds the change; its scales are 2 to 4",
                )
                scales = gr.Textbox(
                    "0, 0.2, 0.4, 0.6",
                    label="Scales",
                    info="Up to six, with commas between them",
                    max_length=60,
                )
                steering = gr.Button("Sweep the scales", variant="primary")
        with gr.Column(scale=2, min_width=NARROW):
            times = gr.Dataframe(headers=list(TIMES), label="Times", interactive=False, wrap=True)
            results = Results.build("Images on the same seeds")
    outputs = [times, *results.outputs]

    def finished(outcome: Any) -> list[Any]:
        return [outcome.figures, *Results.of(desk, outcome)]

    def compare_work(job: Job, *values: Any) -> list[Any]:
        keys = ("model", "prompt", "steps", "few", "guidance_scale", "num_images", "seed")
        return finished(compare(desk.store, job, **dict(zip(keys, values, strict=True))))

    def steer_work(job: Job, *values: Any) -> list[Any]:
        keys = ("model", "prompt", "negative_prompt", "mode", "scales", "steps", "num_images", "seed")
        return finished(steer(desk.store, job, **dict(zip(keys, values, strict=True))))

    inputs = [model, prompt, steps, few, guidance, images, seed]
    connect(desk, "one-step", comparing, compare_work, inputs, outputs, "compare", submit=[prompt])
    inputs = [model, prompt, negative, mode, scales, few, images, seed]
    buttons = (steering, comparing[1])
    connect(desk, "one-step", buttons, steer_work, inputs, outputs, "steer", submit=[negative, scales])
