"""Pairs of drawn scenes to edit one into the other, so that what should change is known to the pixel."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from dmkit.data.emoji import Art
from dmkit.data.scenes import BACKGROUNDS, COLOURS, STYLES, Scene, Studio, caption, draw

KINDS = ("colour", "style", "subject", "background")
# One subject becomes another of its group.
GROUPS = (
    (
        "cat",
        "dog",
        "fox",
        "panda",
        "lion",
        "tiger",
        "monkey",
        "pig",
        "frog",
        "cow",
        "koala",
        "rabbit",
        "bear",
    ),
    ("apple", "pear", "lemon", "strawberry", "tomato", "peach", "pineapple", "watermelon"),
    ("car", "bus", "truck", "tractor", "train"),
    ("soccer", "basketball", "baseball", "billiard ball"),
    ("rose", "tulip", "sunflower", "mushroom", "cactus"),
)


@dataclass(frozen=True)
class Edit:
    """A held-out picture, what it shows, and what it shall show.

    Attributes:
        kind: what changes, one of `KINDS`.
        source: a scene with a composition that training never saw.
        target: the same scene but for one word.
        prompts: a caption of each, in the same words otherwise.
        concept: the evaluator's name of what the target has and the source lacks.
    """

    kind: str
    source: Scene
    target: Scene
    prompts: tuple[str, str]
    concept: str


@dataclass(frozen=True)
class Edits:
    """N edits and their drawings.

    Attributes:
        edits: what they are.
        sources: (N, 3, H, W) in [-1, 1].
        targets: (N, 3, H, W), the scenes that are asked for, as drawn.
    """

    edits: list[Edit]
    sources: torch.Tensor
    targets: torch.Tensor

    @cached_property
    def changed(self) -> torch.Tensor:
        """(N, 1, H, W) bool: the pixels in which both drawings differ."""
        return (self.sources != self.targets).any(1, keepdim=True)

    @property
    def source_prompts(self) -> list[str]:
        return [edit.prompts[0] for edit in self.edits]

    @property
    def target_prompts(self) -> list[str]:
        return [edit.prompts[1] for edit in self.edits]

    def take(self, indices: list[int]) -> Edits:
        return Edits([self.edits[k] for k in indices], self.sources[indices], self.targets[indices])


def held_out_edits(count: int, resolution: int) -> Edits:
    """`count` edits of each kind, always the same ones."""
    studio = Studio({vendor: Art.load(vendor) for vendor in STYLES.values()}, resolution)
    edits = [edit for kind in KINDS for edit in _of_kind(kind, count)]
    sources, targets = (
        torch.stack([studio.draw(scene) for scene in scenes]).float() / 127.5 - 1
        for scenes in ([edit.source for edit in edits], [edit.target for edit in edits])
    )
    return Edits(edits, sources, targets)


def _of_kind(kind: str, count: int) -> Iterator[Edit]:
    dice = random.Random(f"dmkit edits 1 {kind}")
    seen: set[Scene] = set()
    while len(seen) < count:
        source = draw(dice)
        changed = _changed(kind, source, dice) if len(source.things) == 1 and source.unseen() else None
        if changed is not None and source not in seen:
            seen.add(source)
            target, concept = changed
            yield Edit(kind, source, target, _captions(source, target, dice), concept)


def _changed(kind: str, scene: Scene, dice: random.Random) -> tuple[Scene, str] | None:
    """(the scene with one thing changed, the concept that is new); None where there is nothing to change."""
    thing = scene.things[0]
    if kind == "style":
        style = dice.choice([name for name in STYLES if name != scene.style])
        return replace(scene, style=style), f"{style} style"
    if kind == "background" and scene.background != "white":
        background = dice.choice([name for name in BACKGROUNDS if name not in (scene.background, "white")])
        return replace(scene, background=background), f"{background} background"
    if kind == "colour" and thing.colour:
        colour = dice.choice([name for name in COLOURS if name != thing.colour])
        return replace(scene, things=(replace(thing, colour=colour),)), colour
    group = next((group for group in GROUPS if thing.subject in group), None)
    if kind == "subject" and group and not thing.colour:
        subject = dice.choice([name for name in group if name != thing.subject])
        return replace(scene, things=(replace(thing, subject=subject),)), subject
    return None


def _captions(source: Scene, target: Scene, dice: random.Random) -> tuple[str, str]:
    """Both captions in the same words, with the style named."""
    while True:
        seed = dice.random()
        said = caption(source, random.Random(seed))
        if source.style in said:
            return said, caption(target, random.Random(seed))
