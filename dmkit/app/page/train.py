"""The page of the tab Train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from .. import limits
from ..train import MAX_STEPS, RECIPES, State, Trainings
from .parts import NARROW, Desk, frame, seed_box, spoken

LOSSES = {"step": int, "loss": str, "value": float}
SECONDS = 2.0  # between two looks


def page(desk: Desk) -> None:
    """Builds the tab's components and their events."""
    trainings: Trainings = desk.trainings
    if not trainings.available:
        gr.Markdown(
            "The training scripts and recipes are in dmkit's repository: run the demo from a checkout."
        )
        return
    gr.Markdown(
        "A training in a process of its own; leave the page and come back as you like. One runs at a time, "
        "and all visitors see it."
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=NARROW):
            recipe = gr.Radio(
                [(what.what, name) for name, what in RECIPES.items()], value="digits", label="Recipe"
            )
            target = gr.Textbox(
                "a heart", label="Concept to erase", max_length=limits.PROMPT_LENGTH, visible=False
            )
            steps = gr.Number(
                300, label="Training steps", precision=0, minimum=MAX_STEPS[0], maximum=MAX_STEPS[1]
            )
            seed = seed_box()
            with gr.Row():
                start = gr.Button("Start", variant="primary", min_width=80)
                halt = gr.Button("Stop", variant="stop", min_width=80)
                resume = gr.Button("Resume", min_width=80)
        with gr.Column(scale=2, min_width=NARROW):
            status = gr.Markdown("No training yet.", container=True)
            # Begun with an empty frame, the first lines can be left out.
            losses = gr.LinePlot(
                x="step",
                y="value",
                color="loss",
                y_title="loss",
                label="Loss",
                buttons=[],
            )
            samples = gr.Gallery(
                label="Samples, the newest first",
                columns=2,
                height="auto",
                object_fit="contain",
                interactive=False,
                elem_classes="dmkit-pictures",
            )
            with gr.Accordion("Command and log", open=False):
                command = gr.Code(
                    label="Command",
                    language="shell",
                    interactive=False,
                    wrap_lines=True,
                )
                log = gr.Textbox(label="Log", lines=8, max_lines=12, interactive=False)
    outputs = [status, losses, samples, command, log]
    # What was shown last, so that nothing is sent again, and the pictures do not flicker.
    seen = gr.State(None)

    def look(last: Any) -> list[Any]:
        state = trainings.state()
        if state == last:
            return [gr.skip()] * (len(outputs) + 1)
        old = last.samples if isinstance(last, State) else None
        shown = (
            [(desk_copy(path), path.stem) for path in state.samples] if state.samples != old else gr.skip()
        )
        return [
            state.status,
            frame(state.losses, **LOSSES) if state.losses else None,
            shown,
            trainings.shown_command(),
            state.log,
            state,
        ]

    def desk_copy(path: Any) -> str:
        """Gradio serves nothing from the training's folder itself."""
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()
        return desk.shelf.keep_picture(
            picture, path.stem, {"training": path.parents[1].name, "step": path.stem}
        )

    def acting(action: Callable[..., Any]) -> Callable[..., list[Any]]:
        def act(last: Any, *values: Any) -> list[Any]:
            with spoken():
                action(*values)
            return look(last)

        return act

    def begin(recipe: Any, target: Any, steps: Any, seed: Any) -> None:
        trainings.start(recipe, target=target, max_train_steps=steps, seed=seed)

    everything = [*outputs, seen]
    start.click(
        acting(begin),
        [seen, recipe, target, steps, seed],
        everything,
        api_name="train",
        concurrency_id="train",
    )
    halt.click(acting(trainings.stop), [seen], everything, api_name="stop_training", concurrency_id="train")
    resume.click(
        acting(trainings.resume), [seen], everything, api_name="resume_training", concurrency_id="train"
    )
    recipe.change(
        lambda name: gr.Textbox(visible=name in RECIPES and RECIPES[name].takes_target),
        recipe,
        target,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    timer = gr.Timer(SECONDS)
    timer.tick(look, [seen], everything, queue=False, show_progress="hidden", api_visibility="private")
