"""`dmkit app`: the demo in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options


def app(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860 on.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of further pipelines that may be chosen.", show_default=False)
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="Folder of adapters; adapters/ by default.", show_default=False)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of what is trained in the demo.")] = Path("outputs/app"),
    device: options.Device = None,
) -> None:
    """Open the demo in the browser: sample, invert, edit, erase, train. Needs the extra `app`.

    Examples:

        dmkit app

        dmkit app --port 8000 --models outputs
    """
    from ..app import launch

    launch(host=host, port=port, models=models, adapters=adapters, runs=runs, device=device)
