"""The page of the tab Erase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from .. import limits
from ..erase import MOST_ADAPTERS, check_adapter, erase
from ..jobs import Job
from ..store import found_adapters
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
    spoken,
    steps_slider,
)

BARS = {"adapter": str, "prompt": str, "permeability": float}


def chosen_files(desk: Desk, names: Any, files: Any) -> list[Path]:
    """The adapters that were chosen, the shipped ones first, each in an allowed place.

    Args:
        desk: has the shipped ones and the uploads.
        names: a list of names of shipped ones, or None.
        files: a list of paths of uploaded ones, or None.

    Raises:
        ValueError: no list, too many, an unknown name, or a file from elsewhere.
    """
    shipped = found_adapters(desk.adapters)
    names, files = limits.listed("The adapters", names), limits.listed("Your adapters", files)
    paths = [shipped[limits.choice("adapter", name, shipped)] for name in names]
    paths += [limits.inside(file, [desk.shelf.uploads]) for file in files]
    if len(paths) > MOST_ADAPTERS:
        raise ValueError(f"At most {MOST_ADAPTERS} adapters at once, not {len(paths)}.")
    return paths


def page(desk: Desk) -> None:
    """Builds the tab's components and their events."""
    shipped = list(found_adapters(desk.adapters))
    first = "heart" if "heart" in shipped else shipped[0] if shipped else None
    models = desk.store.names(text=True)
    gr.Markdown(
        "An SPM adapter takes a concept out of the model. With facilitated transport each prompt opens it "
        "as far as it is about the concept, so that the control prompt stays as it was."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=NARROW):
            model = gr.Dropdown(models, value="emoji" if "emoji" in models else None, label="Model")
            names = gr.Dropdown(
                shipped,
                value=[first] if first else [],
                multiselect=True,
                max_choices=MOST_ADAPTERS,
                label="Adapters",
                info=None if shipped else "None ships with this version: upload one.",
                visible=bool(shipped),
            )
            files = gr.File(
                label="Your adapters (.safetensors)",
                file_count="multiple",
                file_types=[".safetensors"],
                height=160,
            )
            about = gr.Markdown(visible=False)
            factors = [
                gr.Slider(
                    *limits.FACTOR,
                    1.0,
                    step=0.1,
                    label=f"Factor of {first}" if k == 0 and shipped else f"Factor of adapter {k + 1}",
                    visible=k == 0 and bool(shipped),
                )
                for k in range(MOST_ADAPTERS)
            ]
            transport = gr.Checkbox(True, label="Facilitated transport")
            prompt = prompt_box("a red heart", label="Prompt about the concept")
            control = prompt_box("a pizza", label="Control prompt")
            steps, guidance = steps_slider(20), guidance_slider()
            images, seed = images_slider(4), seed_box()
            buttons = run_buttons("Erase")
        with gr.Column(scale=2, min_width=NARROW):
            bars = gr.BarPlot(
                frame([], **BARS),
                x="prompt",
                y="permeability",
                color="adapter",
                y_lim=[0, 1],
                label="How far each prompt opens each adapter",
                visible=False,
                buttons=[],
            )
            results = Results.build("Before and after, on the same seeds")
    outputs = [bars, *results.outputs]

    def work(job: Job, names: Any, files: Any, *values: Any) -> list[Any]:
        paths = chosen_files(desk, names, files)
        weights, rest = values[:MOST_ADAPTERS], values[MOST_ADAPTERS:]
        keys = ("model", "transport", "prompt", "control", "steps", "guidance_scale", "num_images", "seed")
        outcome = erase(
            desk.store,
            job,
            adapters=list(zip(paths, weights, strict=False)),
            **dict(zip(keys, rest, strict=True)),
        )
        # Bars at the same place would be piled up.
        several = len(paths) > 1
        rows = [
            (name, f"{prompt}, {name}" if several else prompt, far) for name, prompt, far in outcome.extra
        ]
        order = [place for _, place, _ in rows]
        plotted = gr.BarPlot(frame(rows, **BARS), sort=order or None, visible=bool(order))
        return [plotted, *Results.of(desk, outcome)]

    def choose(names: Any, files: Any) -> list[Any]:
        """One slider an adapter, and a line about each upload."""
        with spoken():
            paths = chosen_files(desk, names, files)
            lines = [check_adapter(path) for path in paths[len(names or []) :]]
        sliders = [
            gr.Slider(label=f"Factor of {paths[k].stem}", visible=True)
            if k < len(paths)
            else gr.Slider(visible=False)
            for k in range(MOST_ADAPTERS)
        ]
        return [gr.Markdown("\n\n".join(f"`{line}`" for line in lines), visible=bool(lines)), *sliders]

    gr.on(
        [names.change, files.change],
        choose,
        [names, files],
        [about, *factors],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    inputs = [names, files, *factors, model, transport, prompt, control, steps, guidance, images, seed]
    connect(desk, "erase", buttons, work, inputs, outputs, "erase", submit=[prompt, control])
