"""Scripts of `scripts/` as a user runs them, and their `main` for what needs no process of its own."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}


def script(name: str) -> str:
    return str(ROOT / "scripts" / f"{name}.py")


def run_script(name: str, *arguments: str, processes: int = 1) -> None:
    """Runs a script to its end; more than one process are started by torchrun."""
    # `accelerate launch --cpu --num_processes 2` of Accelerate 1.15 starts one process; torchrun starts two,
    # which Accelerate then joins.
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, script(name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def script_main(name: str) -> Iterator[Callable[[list[str]], None]]:
    """A script's `main`; on one thread, as `run_script` runs it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module(name).main
    finally:
        sys.path.remove(str(ROOT / "scripts"))
        torch.set_num_threads(threads)
