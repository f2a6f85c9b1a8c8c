"""Result files of the benchmarks: JSON that grows cell by cell, so that a long run can stop and go on."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmkit._files import load_json, save_json

# The committed results, unless DMKIT_RESULTS names another folder to measure afresh into.
RESULTS = Path(os.environ.get("DMKIT_RESULTS", Path(__file__).parents[1] / "docs" / "results"))


def environment() -> dict[str, str]:
    """The versions and the processor that a result was made with."""
    import diffusers
    import torch

    import dmkit

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown")
    return {
        "dmkit": dmkit.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
    }


class Cells:
    """A JSON file {"about", "environment", "cells": {key: figures}} that several processes may write at
    once.
    """

    def __init__(self, name: str, about: Mapping[str, Any]):
        self.path = RESULTS / f"{name}.json"
        self._about = dict(about)

    def read(self) -> dict[str, Any]:
        return load_json(self.path)["cells"] if self.path.exists() else {}

    def record(self, key: str, figures: Any) -> None:
        """Writes one cell, whatever other processes write meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            cells = dict(sorted({**self.read(), key: figures}.items()))
            save_json(self.path, {"about": self._about, "environment": environment(), "cells": cells})

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """The figures under `key`; measured and written only if they are not there yet."""
        if (known := self.read().get(key)) is not None:
            return known
        figures = measure()
        self.record(key, figures)
        print(f"{self.path.stem}: {key}: {figures}", flush=True)
        return figures
