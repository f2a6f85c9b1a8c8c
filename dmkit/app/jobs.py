"""Runs that can be watched and stopped between two steps."""

from __future__ import annotations

import contextvars
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any


class Cancelled(Exception):  # noqa: N818  (nothing went wrong)
    """The visitor has stopped the run, or left."""


@dataclass(frozen=True)
class Progress:
    """So many steps of all are done, of which `what` is being made."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Shown:
    """Something to show while the work goes on."""

    update: Any


@dataclass(frozen=True)
class Finished:
    """What the work returned."""

    result: Any


class Job:
    """One run. The work calls `step` after each step and may `show` what it has so far."""

    def __init__(self) -> None:
        self._stopped = Event()
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._part, self._parts, self._what = 0, 1, "image"

    def stop(self) -> None:
        """The work ends at its next step."""
        self._stopped.set()

    def check(self) -> None:
        """Raises:
        Cancelled: the job was stopped.
        """
        if self._stopped.is_set():
            raise Cancelled

    def part(self, index: int, of: int, what: str) -> None:
        """The next steps belong to part `index` of several, all of about the same length."""
        self.check()
        self._part, self._parts, self._what = index, of, what

    def step(self, done: int, total: int) -> None:
        """Says that `done` of the part's `total` steps are done.

        Raises:
            Cancelled: the job was stopped.
        """
        self.check()
        self._news.put(Progress(self._part * total + min(done, total), self._parts * total, self._what))

    def show(self, update: Any) -> None:
        """Hands over something to show while the work goes on."""
        self._news.put(Shown(update))

    def watch(self, work: Callable[[Job], Any]) -> Iterator[Progress | Shown | Finished]:
        """Runs `work(job)` in a thread; yields `Progress` and `Shown`, and `Finished` at last. What it raises
        is raised here. Leaving the loop early stops the work.
        """
        end: list[Any] = []

        def run() -> None:
            try:
                end.append((work(self), None))
            except BaseException as error:
                end.append((None, error))
            finally:
                self._news.put(None)

        # Warnings and Gradio's own messages belong to the context of the request.
        thread = Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
        thread.start()
        try:
            while (news := self._news.get()) is not None:
                yield news
        finally:
            self.stop()
            thread.join()
        result, error = end[0]
        if error is not None:
            raise error
        yield Finished(result)


class Jobs:
    """The runs of all visitors: one for each visitor and tab, the newest."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Job] = {}
        self._lock = Lock()

    @contextmanager
    def started(self, visitor: str, tab: str) -> Iterator[Job]:
        """A new job; an older one of the same visitor and tab stops."""
        job = Job()
        with self._lock:
            older = self._running.get((visitor, tab))
            self._running[visitor, tab] = job
        if older is not None:
            older.stop()
        try:
            yield job
        finally:
            with self._lock:
                if self._running.get((visitor, tab)) is job:
                    del self._running[visitor, tab]

    def stop(self, visitor: str, tab: str | None = None) -> None:
        """Stops a visitor's run in a tab, or in all of them."""
        with self._lock:
            jobs = [
                job for (who, where), job in self._running.items() if who == visitor and tab in (None, where)
            ]
        for job in jobs:
            job.stop()

    def __len__(self) -> int:
        with self._lock:
            return len(self._running)
