"""The demo in the browser, on Gradio (extra `app`): `dmkit app`, or `python app.py`.

The modules here are what the tabs do, as functions that know nothing of a page: arguments in, an `Outcome`
out. `page` lays them out.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import signal
import sys
from pathlib import Path
from threading import Thread
from typing import Any

from .. import shipped
from ..errors import MissingExtraError

UPLOAD_LIMIT = "64mb"


def adapter_roots(given: str | Path | None = None) -> list[Path]:
    """Folders with adapters: the given one, else `adapters/` here and the shipped ones."""
    candidates = [Path(given)] if given is not None else [Path("adapters"), Path(shipped.path("adapters"))]
    return [folder for folder in candidates if folder.is_dir()]


def launch(
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    models: str | Path | None = None,
    adapters: str | Path | None = None,
    runs: str | Path = "outputs/app",
    device: str | None = None,
    block: bool = True,
) -> Any:
    """Starts the demo; nothing is fetched from or sent to anywhere.

    Args:
        host: address to listen on; "0.0.0.0" lets other machines in.
        port: the first free one from 7860 on by default.
        models: folder of further pipelines that may be chosen.
        adapters: folder of adapters that may be chosen; `adapters/` by default.
        runs: folder of what is trained here.
        device: where to compute; CUDA if there is one, else the CPU.
        block: wait until the server is interrupted.

    Returns:
        The `gr.Blocks`, whose `local_url` is the page.

    Raises:
        MissingExtraError: Gradio is not installed.
        ValueError: a folder of models or adapters that does not exist.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("gradio", "app")
    for what, folder in (("models", models), ("adapters", adapters)):
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"The folder of {what}, {folder}, does not exist.")
    # Before Gradio and huggingface_hub are imported, which read them once.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Its pages can send runs to a bucket on the hub.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from .outcome import Shelf

    shelf = Shelf()
    os.environ["GRADIO_TEMP_DIR"] = str(shelf.uploads)

    from .page import CSS, build, theme
    from .page.parts import Desk
    from .store import ModelStore
    from .train import Trainings
    from .warmup import warm_up

    desk = Desk(ModelStore(models, device), Trainings(runs), adapter_roots(adapters), shelf)
    atexit.register(desk.close)
    demo = build(desk)
    demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        show_error=False,
        quiet=not block,
        inbrowser=False,
        max_file_size=UPLOAD_LIMIT,
        allowed_paths=[str(shelf.root)],
        footer_links=["settings"],
        enable_monitoring=False,
        pwa=False,
        theme=theme(),
        css=CSS,
        prevent_thread_lock=True,
        # Gradio would ask for its own page, and give up when that takes 3 s: on a slow machine it may.
        _frontend=False,
    )
    Thread(target=warm_up, daemon=True).start()
    if block:
        # Ended like this too it removes its files and stops its training.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        demo.block_thread()
    return demo
