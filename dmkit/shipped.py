"""What ships beside the package, and how it is found: `adapters/` and `pipelines/`.

    from diffusers import DiffusionPipeline
    from dmkit import shipped, zoo

    pipe = DiffusionPipeline.from_pretrained(
        zoo.path("emoji"), custom_pipeline=shipped.path("pipelines/spm"), trust_remote_code=True
    )
    pipe.load_spm_weights(shipped.path("adapters/heart/heart.safetensors"), "heart")

In a checkout they lie at its top; a wheel carries them inside the package.
"""

from __future__ import annotations

from pathlib import Path

from .errors import unknown_name

KINDS = ("adapters", "pipelines")
_PACKAGE = Path(__file__).parent
# Beside an installed package lie other packages, which may have any name: look there in a checkout alone.
HOME = _PACKAGE / "_shipped" if (_PACKAGE / "_shipped").is_dir() else _PACKAGE.parent


def path(name: str) -> str:
    """The path of a shipped folder, or of a file in it: `adapters`, `adapters/heart`, `pipelines/nasa`.

    Raises:
        ValueError: nothing of this name ships; the message names the nearest folder.
    """
    home, found = HOME.resolve(), (HOME / name).resolve()
    roots = [home / kind for kind in KINDS]
    if not found.exists() or not any(found.is_relative_to(root) for root in roots):
        known = [f"{root.name}/{folder.name}" for root in roots for folder in sorted(root.glob("*/"))]
        raise unknown_name("shipped folder", name, known)
    return str(found)
