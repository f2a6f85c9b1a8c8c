"""Draws the pictures of the pages of `pipelines/` with the shipped models: what each community pipeline does.

    python benchmarks/pictures.py [FOLDER]

They are drawn with the pipelines themselves, on fixed seeds, into `docs/images` by default. Draw them again
when the shipped models change.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

from dmkit import zoo
from dmkit.images import save_png

ROOT = Path(__file__).parents[1]
SCALE, COUNT = 3, 6


def load(name: str, model: str = "emoji") -> Any:
    pipe = DiffusionPipeline.from_pretrained(
        zoo.path(model), custom_pipeline=str(ROOT / "pipelines" / name), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draws(count: int = COUNT) -> list[torch.Generator]:
    """Image k is of seed k."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def rows(*lists: list[Image.Image]) -> Image.Image:
    """Rows of pictures of one size, enlarged."""
    side = SCALE * lists[0][0].width
    sheet = Image.new("RGB", (len(lists[0]) * (side + 2) - 2, len(lists) * (side + 2) - 2), "white")
    for y, pictures in enumerate(lists):
        for x, picture in enumerate(pictures):
            tile = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (x * (side + 2), y * (side + 2)))
    return sheet


def difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """How far apart two grey pictures are, 0 black; four times as bright as it is."""
    a, b = (
        torch.frombuffer(bytearray(p.convert("L").tobytes()), dtype=torch.uint8).int() for p in (one, other)
    )
    return Image.frombytes("L", one.size, (4 * (a - b).abs()).clamp(max=255).byte().numpy().tobytes())


def bdia_inversion() -> Image.Image:
    """Real pictures, their noise, what comes back, and how far that is off."""
    pipe = load("bdia_inversion", "fashion")
    pictures = [Image.open(path) for path in zoo.examples("fashion")[:COUNT]]
    out = pipe(pictures, num_inference_steps=20)
    noise = pipe.pictures(out.pair.z_T.float() / 2, "pil")  # two standard deviations from black to white
    off = [difference(a, b) for a, b in zip(pictures, out.images, strict=True)]
    return rows(pictures, noise, out.images, off)


def bdia_editing() -> Image.Image:
    """Pictures of the model's own, edited everywhere, the masks found, and edited within them."""
    pipe = load("bdia_editing")
    prompts = ["a red heart", "a blue car", "a red apple", "a green book", "a cat", "a pizza"]
    targets = ["a blue heart", "a red car", "a green apple", "a red book", "a cat on blue", "a hamburger"]
    options = {"num_inference_steps": 20, "guidance_scale": 3.0}
    sources = pipe.inner()(prompts, generator=draws(), **options).images
    done = [
        [
            pipe(picture, prompt, target, mask=mask, **options)
            for picture, prompt, target in zip(sources, prompts, targets, strict=True)
        ]
        for mask in (None, "auto")
    ]
    masks = [Image.fromarray((edit.mask[0, 0] * 255).byte().numpy()).resize((32, 32), 0) for edit in done[1]]
    edited = [[edit.images[0] for edit in edits] for edits in done]
    return rows(sources, edited[0], masks, edited[1])


def nasa() -> Image.Image:
    """Four steps without guidance, at growing scales of NASA."""
    pipe = load("nasa")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    things = ["a car", "a balloon", "an apple", "a heart", "a flower", "a book"]
    red = [f"a red {thing.split()[1]}" for thing in things]
    found = [
        pipe(things, red, nasa_scale=scale, num_inference_steps=4, generator=draws()).images
        for scale in (0.0, 0.2, 0.4)
    ]
    return rows(*found)


def spm() -> Image.Image:
    """The same prompts and seeds without adapters, with `heart`, and with `heart` and `cat`."""
    pipe = load("spm")
    prompts = ["a red heart", "a heart on a blue background", "a cat", "a pizza", "a blue car", "a penguin"]
    options = {"num_inference_steps": 20, "guidance_scale": 3.0}
    found = [pipe(prompts, generator=draws(), **options).images]
    for name in ("heart", "cat"):
        pipe.load_spm_weights(ROOT / "adapters" / name / f"{name}.safetensors", adapter_name=name)
        found.append(pipe(prompts, generator=draws(), **options).images)
    return rows(*found)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    for draw in (bdia_inversion, bdia_editing, nasa, spm):
        print(save_png(draw(), folder / f"pipeline-{draw.__name__}.png"))


if __name__ == "__main__":
    main()
