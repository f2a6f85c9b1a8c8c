"""The demo as a visitor meets it: how soon it is there, and whether its memory grows over a hundred runs.

`dmkit app` in a process of its own, measured from outside over HTTP. Interactive: seconds from the start of
the process until the page and its layout are served, without a browser's own time to draw it. First image:
seconds from the start until the first sampling of `emoji` (1 image, 20 steps) has ended. Memory: the resident
size of the server after the runs named; a run is one of sampling two samplers, inverting, erasing, one-step
and steering in turn. Growth: the slope of a line through the second half.

    python benchmarks/app_limits.py [--runs 100]        (a quarter of an hour on a core)

Needs the extra `app`.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from _results import Cells

STARTS = 3
SAMPLE = ["emoji", "a red heart", "", "ddim", "ts-ddim", 20, 3.0, 1, 0, "auto", "auto"]


class Server:
    """`dmkit app` on a free port, until the block ends."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "dmkit", "app", "--device=cpu", f"--port={port}", f"--runs={folder}"]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        while True:
            try:
                for page in ("/config", "/"):
                    with urllib.request.urlopen(self.address + page, timeout=5) as reply:
                        reply.read()
                break
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("The demo does not start; try `dmkit app`.") from None
                time.sleep(0.02)
        self.interactive = self.age()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def age(self) -> float:
        return time.perf_counter() - self.started

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def client(self) -> Any:
        from gradio_client import Client

        return Client(self.address, verbose=False, download_files=False)


def start_up() -> dict[str, float]:
    """Medians over a few starts; files are in the system's cache from the second on."""
    interactive, first = [], []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
            interactive.append(server.interactive)
            server.client().predict(*SAMPLE, api_name="/sample")
            first.append(server.age())
    return {
        "interactive": round(float(np.median(interactive)), 2),
        "interactive, the first time": round(interactive[0], 2),
        "first image": round(float(np.median(first)), 2),
        "first image, the first time": round(first[0], 2),
    }


def visits(picture: Path) -> list[tuple[str, list[Any]]]:
    """One run of each kind, with the bounds' ordinary values."""
    from gradio_client import handle_file

    return [
        ("/sample", SAMPLE),
        ("/invert", [handle_file(str(picture)), "emoji", "a red heart", 20]),
        ("/erase", [["heart"], [], 1, 1, 1, 1, "emoji", True, "a red heart", "a cat", 20, 3.0, 1, 0]),
        ("/compare", ["emoji-one-step", "a red heart", 1, 20, 3.0, 1, 0]),
        ("/steer", ["emoji-one-step", "a car", "red", "nasa", "0, 0.3", 1, 1, 0]),
    ]


def memory(runs: int) -> dict[str, Any]:
    """Resident size over `runs` runs."""
    from dmkit import data
    from dmkit.images import save_png, to_pil

    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        picture = Path(folder) / "picture.png"
        save_png(
            to_pil(data.load("digits", split="test", resolution=64)[0]["images"]).convert("RGB"), picture
        )
        client = server.client()
        kinds = visits(picture)
        sizes = [server.resident_mib()]
        for k in range(runs):
            name, arguments = kinds[k % len(kinds)]
            client.predict(*arguments, api_name=name)
            sizes.append(server.resident_mib())
    half = np.arange(runs // 2, runs + 1)
    slope = np.polyfit(half, np.array(sizes)[half], 1)[0]
    marks = sorted({0, 1, *range(runs // 10, runs + 1, max(1, runs // 10))})
    return {
        **{f"after {k}": round(sizes[k]) for k in marks},
        "peak": round(max(sizes)),
        "growth a run": round(float(slope), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    cells = Cells("app_limits", {"what": (__doc__ or "").strip().splitlines()[0], "starts": STARTS})
    cells.once("start, s", start_up)
    cells.once("memory, MiB", lambda: memory(arguments.runs))


if __name__ == "__main__":
    main()
