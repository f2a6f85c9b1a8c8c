"""What the tabs' pages have in common: what they share, how a run is watched, how results are laid out."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from ...errors import DmkitError
from .. import limits
from ..jobs import Cancelled, Finished, Jobs, Progress
from ..outcome import Outcome, Shelf
from ..store import ModelStore
from ..train import Trainings
from ..warmup import warm_up

logger = logging.getLogger("dmkit.app")
NARROW = 320  # pixels below which columns come one under the other
RUNS = "runs"  # the queue that all samplings share


@dataclass
class Desk:
    """What all tabs share."""

    store: ModelStore
    trainings: Trainings
    adapters: Sequence[Path] = ()
    shelf: Shelf = field(default_factory=Shelf)
    jobs: Jobs = field(default_factory=Jobs)

    def close(self) -> None:
        """Stops what runs and removes the temporary files."""
        self.trainings.stop()
        self.shelf.close()


@contextmanager
def spoken() -> Iterator[None]:
    """Around what a visitor starts, once all is imported: errors as one line on the page; what was not
    foreseen goes to the log alone.
    """
    try:
        warm_up()
        yield
    except gr.Error:
        raise
    except (DmkitError, ValueError) as error:
        # The page shows messages as HTML.
        message = html.escape(" ".join(str(error).split()), quote=False)
        raise gr.Error(message, print_exception=False) from None
    except Exception:
        logger.exception("A run of the demo failed.")
        raise gr.Error(
            "Something went wrong on the server; its log has the details.", print_exception=False
        ) from None


def handler(
    desk: Desk,
    tab: str,
    work: Callable[..., Any],
    outputs: int,
    live: Callable[[Any], list[Any]] | None = None,
) -> Callable[..., Iterator[Any]]:
    """An event's function that runs `work(job, *values)` as the visitor's job of this tab.

    Args:
        desk: what is shared.
        tab: its name.
        work: returns the values of all outputs.
        outputs: how many there are.
        live: their values for what the job shows meanwhile.
    """

    def handle(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio finds it by its default)
        *values: Any,
    ) -> Iterator[Any]:
        with spoken(), desk.jobs.started(request.session_hash or "", tab) as job:
            try:
                for news in job.watch(lambda job: work(job, *values)):
                    if isinstance(news, Progress):
                        progress((news.done, news.total), desc=news.what, unit="steps")
                    elif isinstance(news, Finished):
                        yield news.result
                    elif live is not None:
                        yield live(news.update)
            except Cancelled:
                gr.Info("Stopped.")
                yield [gr.skip()] * outputs

    return handle


def stop(desk: Desk, tab: str) -> Callable[[gr.Request], None]:
    """The function of a tab's stop button."""

    def handle(request: gr.Request) -> None:
        desk.jobs.stop(request.session_hash or "", tab)

    return handle


def run_buttons(*labels: str) -> list[gr.Button]:
    """A button for each label, and Stop, in a row."""
    with gr.Row():
        runs = [gr.Button(label, variant="primary", min_width=80) for label in labels]
        halt = gr.Button("Stop", variant="stop", min_width=80)
    return [*runs, halt]


def connect(
    desk: Desk,
    tab: str,
    buttons: Sequence[gr.Button],
    work: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    api_name: str,
    submit: Sequence[Any] = (),
    live: Callable[[Any], list[Any]] | None = None,
) -> None:
    """Wires a tab's two buttons; the text boxes `submit` run it with Enter. See `handler`."""
    run, halt = buttons
    gr.on(
        [run.click, *(box.submit for box in submit)],
        handler(desk, tab, work, len(outputs), live),
        list(inputs),
        list(outputs),
        api_name=api_name,
        concurrency_id=RUNS,
    )
    halt.click(stop(desk, tab), None, None, queue=False, show_progress="hidden", api_visibility="private")


@dataclass(frozen=True)
class Results:
    """The components of a result, and their values for an outcome."""

    pictures: gr.Gallery
    files: gr.File
    parameters: gr.JSON
    code: gr.Code

    @classmethod
    def build(cls, what: str) -> Results:
        """Lays them out; `what` names the pictures."""
        pictures = gr.Gallery(
            label=what,
            columns=2,
            height="auto",
            object_fit="contain",
            buttons=["download", "fullscreen"],
            interactive=False,
            elem_classes="dmkit-pictures",
        )
        with gr.Accordion("Download, parameters, and the Python that makes this again", open=False):
            files = gr.File(
                label="PNG files, the parameters in their metadata",
                file_count="multiple",
                interactive=False,
                elem_classes="dmkit-files",
            )
            code = gr.Code(
                label="Python",
                language="python",
                interactive=False,
                wrap_lines=True,
                buttons=["copy", "download"],
            )
            parameters = gr.JSON(label="Parameters", open=False)
        return cls(pictures, files, parameters, code)

    @property
    def outputs(self) -> list[Any]:
        return [self.pictures, self.files, self.parameters, self.code]

    @staticmethod
    def of(desk: Desk, outcome: Outcome) -> list[Any]:
        """The values of `outputs`."""
        shown, files = desk.shelf.keep(outcome)
        return [shown, files, dict(outcome.parameters), outcome.code]


def upload_box(label: str, alt_text: str) -> gr.Image:
    """A picture from the visitor; events get its file as it came, which `limits.picture` judges."""
    box = gr.Image(
        label=label,
        sources=["upload", "clipboard"],
        type="filepath",
        height=220,
        alt_text=alt_text,
        elem_classes="dmkit-upload",
    )
    # Gradio would open and convert it. (A subclass of a component makes Gradio write a stub file beside us.)
    box.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return box


def uploaded(desk: Desk, path: str | None) -> tuple[Image.Image, str]:
    """The picture that was uploaded, and its name.

    Raises:
        ValueError: none, or a file from elsewhere.
        FileFormatError: no picture.
    """
    if path is None:
        raise ValueError("Choose a picture first.")
    real = limits.inside(path, [desk.shelf.uploads])
    return limits.picture(real), real.name


def frame(rows: Iterable[Sequence[Any]], **columns: type) -> pd.DataFrame:
    """Rows as a plot takes them; the types of the columns stay the same when there are no rows."""
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def seed_box() -> gr.Number:
    least, most = limits.SEED
    return gr.Number(0, label="Seed", precision=0, minimum=least, maximum=most, min_width=100)


def steps_slider(value: int, most: int = 100, least: int = 1, label: str = "Steps") -> gr.Slider:
    return gr.Slider(least, most, value, step=1, label=label)


def images_slider(value: int = 4) -> gr.Slider:
    return gr.Slider(*limits.IMAGES, value, step=1, label="Images")


def guidance_slider(value: float = 3.0) -> gr.Slider:
    info = "1 is none; models of one step want 1"
    return gr.Slider(*limits.GUIDANCE, value, step=0.5, label="Guidance scale", info=info)


def prompt_box(value: str = "", label: str = "Prompt", info: str | None = None) -> gr.Textbox:
    return gr.Textbox(value, label=label, info=info, max_length=limits.PROMPT_LENGTH, lines=1, max_lines=3)
