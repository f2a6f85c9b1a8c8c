"""The page of the tab Sample."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..jobs import Job
from ..sample import sample, sampler_choices
from .parts import (
    NARROW,
    Desk,
    Results,
    connect,
    frame,
    guidance_slider,
    images_slider,
    prompt_box,
    run_buttons,
    seed_box,
    steps_slider,
)

SHIFTS = {"sampler": str, "timestep": float, "shift": float}


def page(desk: Desk) -> None:
    """Builds the tab's components and their events."""
    models = desk.store.names()
    first = "emoji" if "emoji" in models else models[0]
    gr.Markdown("Two samplers on the same seeds. Drag the line across the picture to compare them.")
    with gr.Row():
        with gr.Column(scale=1, min_width=NARROW):
            model = gr.Dropdown(models, value=first, label="Model")
            with gr.Group(visible=desk.store.takes_text(first)) as about_text:
                prompt = prompt_box("a red heart")
                negative = prompt_box(label="Negative prompt")
                guidance = guidance_slider()
            with gr.Row():
                one = gr.Dropdown(sampler_choices(), value="ddim", label="Sampler", min_width=120)
                two = gr.Dropdown(sampler_choices(), value="dpm++", label="Compared with", min_width=120)
            steps, images, seed = steps_slider(10), images_slider(), seed_box()
            with gr.Accordion("Time-Shift (samplers that begin with ts-)", open=False):
                gr.Markdown("For models of pixels, such as `fashion`: the states of latent ones say nothing.")
                with gr.Row():
                    info = "auto, or a number of timesteps"
                    window = gr.Textbox("auto", label="Window", info=info, max_length=8, min_width=120)
                    cutoff = gr.Textbox("auto", label="Cut-off", info=info, max_length=8, min_width=120)
            buttons = run_buttons("Sample")
        with gr.Column(scale=2, min_width=NARROW):
            slider = gr.ImageSlider(
                label="Left: sampler; right: compared with",
                type="filepath",
                interactive=False,
                buttons=["fullscreen"],
                elem_classes=["dmkit-pictures", "dmkit-slider"],
            )
            plot = gr.LinePlot(
                frame([], **SHIFTS),
                x="timestep",
                y="shift",
                color="sampler",
                x_title="scheduled timestep",
                y_title="shift",
                y_axis_format="d",
                label="Shift of each step, in timesteps, that Time-Shift chose",
                visible=False,
                buttons=[],
            )
            results = Results.build("Images of each sampler")
    outputs = [slider, plot, *results.outputs]

    def work(job: Job, *values: Any) -> list[Any]:
        names = (
            *("model", "prompt", "negative_prompt", "sampler", "other", "steps", "guidance_scale"),
            *("num_images", "seed", "time_shift_window", "time_shift_cutoff"),
        )
        outcome = sample(desk.store, job, **dict(zip(names, values, strict=True)))
        kept = Results.of(desk, outcome)
        sheets = [path for path, _ in kept[0]]
        plotted = gr.LinePlot(frame(outcome.extra, **SHIFTS), visible=bool(outcome.extra))
        made = list(outcome.images)
        compared = gr.ImageSlider((sheets[0], sheets[-1]), label=f"Left: {made[0]}; right: {made[-1]}")
        return [compared, plotted, *kept]

    def live(rows: Any) -> list[Any]:
        plotted = gr.LinePlot(frame(rows, **SHIFTS), visible=True)
        return [gr.skip(), plotted, *[gr.skip()] * len(results.outputs)]

    inputs = [model, prompt, negative, one, two, steps, guidance, images, seed, window, cutoff]
    connect(desk, "sample", buttons, work, inputs, outputs, "sample", submit=[prompt], live=live)
    model.change(
        lambda name: gr.Group(visible=desk.store.takes_text(name)),
        model,
        about_text,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
