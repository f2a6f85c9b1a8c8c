"""The tab Train: a small recipe in a process of its own, watched from its files, stopped and resumed.

The page never waits for the training: it reads the tracker's event files and the sample pictures that the
trainer writes. What a stop loses is the steps since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import TrainingError
from . import limits

SCRIPTS = Path(__file__).parents[2] / "scripts"
MAX_STEPS = (10, 20_000)
TAIL = 4000  # characters of the log that are shown


@dataclass(frozen=True)
class Recipe:
    """A training that can be chosen.

    Attributes:
        what: one line about it.
        script: in `scripts/`.
        config: in `scripts/recipes/`; None for flags alone.
        flags: what is added.
        takes_target: a concept is asked for.
    """

    what: str
    script: str
    config: str | None
    flags: Mapping[str, Any] = field(default_factory=dict)
    takes_target: bool = False


RECIPES = {
    "digits": Recipe(
        "Handwritten digits at 16 pixels, from scratch: first shapes after about 200 steps.",
        "train_unconditional.py",
        None,
        {
            "dataset_name": "digits",
            "resolution": 16,
            "train_batch_size": 64,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 50,
            "use_ema": True,
            "ema_max_decay": 0.99,
            "eval_batch_size": 16,
            "ddpm_num_inference_steps": 20,
            "save_images_epochs": 2,
            "save_model_epochs": 0,
            "checkpointing_steps": 50,
            "checkpoints_total_limit": 1,
        },
    ),
    "spm": Recipe(
        "An adapter that erases a concept from the emoji model (scripts/recipes/spm-emoji.yaml).",
        "train_spm.py",
        "spm-emoji.yaml",
        {"adapter_name": "erased", "checkpointing_steps": 50},
        takes_target=True,
    ),
    "fashion": Recipe(
        "The shipped fashion model (scripts/recipes/fashion.yaml): hours; needs the data of make data.",
        "train_unconditional.py",
        "fashion.yaml",
        {"checkpointing_steps": 50},
    ),
}


def command(recipe: str, output: Path, *, max_train_steps: Any, seed: Any, target: Any = "") -> list[str]:
    """The command line of a training.

    Raises:
        ValueError: an input out of bounds.
    """
    chosen = RECIPES[limits.choice("recipe", recipe, RECIPES)]
    flags = {
        **chosen.flags,
        "max_train_steps": limits.whole("Steps", max_train_steps, MAX_STEPS),
        "seed": limits.whole("The seed", seed, limits.SEED),
        "output_dir": str(output),
        "logging_steps": 5,
        "report_to": "tensorboard",
        "resume_from_checkpoint": "latest",
    }
    if chosen.takes_target:
        flags["target"] = limits.text("The concept to erase", target)
    config = [] if chosen.config is None else [f"--config={SCRIPTS / 'recipes' / chosen.config}"]
    # With "=" a value that begins with a dash stays a value.
    return [sys.executable, str(SCRIPTS / chosen.script), *config, *(f"--{k}={v}" for k, v in flags.items())]


@dataclass(frozen=True)
class State:
    """What the page shows of a training.

    Attributes:
        status: one line.
        running: whether its process is alive.
        losses: (step, name, value) so far.
        samples: sample pictures, the newest first.
        log: the end of what it printed.
    """

    status: str
    running: bool = False
    losses: tuple[tuple[int, str, float], ...] = ()
    samples: tuple[Path, ...] = ()
    log: str = ""


class Trainings:
    """The trainings of this server: at most one runs at a time.

    Args:
        root: folder under which each training has its own.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Path | None = None
        self._command: list[str] = []
        self._stopped = False

    @property
    def available(self) -> bool:
        """Whether the scripts are here; they belong to the repository, not to the installed package."""
        return SCRIPTS.is_dir()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, recipe: Any, **inputs: Any) -> Path:
        """Starts a training in a new folder, which is returned. `inputs` are those of `command`.

        Raises:
            ValueError: an input out of bounds.
            TrainingError: one is running already.
        """
        with self._lock:
            self._check_idle()
            limits.choice("recipe", recipe, RECIPES)
            number = 1 + sum(1 for _ in self.root.glob(f"{recipe}-*"))
            output = self.root / f"{recipe}-{number}"
            line = command(recipe, output, **inputs)
            output.mkdir(parents=True)
            self._output, self._command = output, line
            self._launch()
            return output

    def resume(self) -> None:
        """Goes on from the last checkpoint of the training that was stopped.

        Raises:
            TrainingError: there is none, or one is running.
        """
        with self._lock:
            self._check_idle()
            if self._output is None:
                raise TrainingError("There is no training to resume: start one.")
            self._launch()

    def stop(self) -> None:
        """Ends the process; nothing happens if none is running."""
        with self._lock:
            if self._process is None or not self.running:
                return
            self._stopped = True
            # Its group: data loaders go with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def state(self) -> State:
        """How it stands; reads files only."""
        if self._output is None or self._process is None:
            return State("No training yet.")
        losses = _losses(self._output)
        samples = sorted((self._output / "samples").glob("step-*.png"), reverse=True)
        log = _tail(self._output / "log.txt")
        step = losses[-1][0] if losses else 0
        if self.running:
            status = (
                f"{self._output.name} is training: step {step}." if step else f"{self._output.name} starts."
            )
        elif self._stopped:
            status = (
                f"{self._output.name} was stopped after step {step}; Resume goes on from its last checkpoint."
            )
        elif self._process.returncode == 0:
            status = f"{self._output.name} is done: {self._output} holds the result."
        else:
            last = next((line for line in reversed(log.splitlines()) if line.strip()), "no message")
            status = f"{self._output.name} failed: {last[:300]}"
        return State(status, self.running, tuple(losses), tuple(samples[:8]), log)

    def shown_command(self) -> str:
        """The command line to repeat it with, as a shell takes it."""
        import shlex

        if not self._command:
            return ""
        root = SCRIPTS.parent
        return shlex.join(["python", *(part.replace(f"{root}{os.sep}", "") for part in self._command[1:])])

    def _check_idle(self) -> None:
        if not self.available:
            raise TrainingError(
                "The training scripts are in dmkit's repository, not in the installed package."
            )
        if self.running:
            raise TrainingError("A training is running already; stop it first.")

    def _launch(self) -> None:
        assert self._output is not None
        self._stopped = False
        with (self._output / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _losses(output: Path) -> list[tuple[int, str, float]]:
    """Losses that the tracker has written; a resumed run's steps replace those that it repeats."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[tuple[str, int], tuple[float, float]] = {}
    for events in sorted(output.glob("logs/**/events.out.tfevents.*")):
        reader = EventAccumulator(str(events), size_guidance={"scalars": 0, "images": 1})
        with contextlib.suppress(OSError):
            reader.Reload()
        for tag in reader.Tags()["scalars"]:
            if tag.startswith("lr/") or tag.endswith(("grad_norm", "images_per_second")):
                continue
            for event in reader.Scalars(tag):
                if event.wall_time >= found.get((tag, event.step), (0.0, 0.0))[0]:
                    found[tag, event.step] = (event.wall_time, event.value)
    return sorted((step, tag, value) for (tag, step), (_, value) in found.items())


def _tail(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4 * TAIL))
        text = stream.read().decode("utf-8", errors="replace")
    # A progress bar writes over its own line.
    lines = [line.rsplit("\r", 1)[-1] if not line.endswith("\r") else line for line in text.split("\n")]
    return "\n".join(lines)[-TAIL:]
