"""Captioned emoji scenes: what the shipped `emoji` model is trained on.

A scene is one or two subjects in one vendor's style on a flat background; the caption says what was drawn:
"a noto drawing of a green heart on a blue background", "a small cat in the top left", "a star to the left of
a key". Scenes are a function of (split, index), so a set of any length costs no memory and is always the
same one.

Held out by hash, and never drawn by "train" or "test": about an eighth of the pairs colour x subject and
background x subject (`held_out`). Every scene of the split "unseen" holds at least one of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import unknown_name
from .dataset import DecodedPixels, ImageDataset
from .emoji import CREDITS, VERSION, Art
from .pictures import to_tensor

RESOLUTION = 32
LENGTHS = {"train": 60_000, "test": 2_000, "unseen": 2_000}

# The word of a caption -> the vendor whose drawing it is.
STYLES = {"noto": "google", "twemoji": "twitter"}

# Subjects that bear their emoji's short name.
_NAMED = """
heart apple pear lemon banana grapes watermelon strawberry cherries pineapple peach tomato carrot
corn eggplant avocado pizza hamburger taco doughnut cookie lollipop coffee beer cat dog mouse rabbit
bear pig frog cow koala penguin owl fish whale octopus turtle snake bee ladybug butterfly snail crab
elephant duck flamingo shark rose tulip sunflower cactus mushroom ghost alien skull car bus truck
tractor airplane rocket helicopter soccer basketball baseball football trophy star cloud rainbow
snowflake umbrella fire house church factory tent volcano hammer wrench key lock bell guitar camera
scissors balloon gift crown shirt dress magnet bomb anchor hourglass candle handbag
"""
# Subject of a caption -> short name of the emoji.
SUBJECTS = {
    **{name: name for name in _NAMED.split()},
    "birthday cake": "birthday",
    "cheese": "cheese_wedge",
    "fries": "fries",
    "hot dog": "hotdog",
    "ice cream": "icecream",
    "fried egg": "fried_egg",
    "chili": "hot_pepper",
    "broccoli": "broccoli",
    "fox": "fox_face",
    "panda": "panda_face",
    "lion": "lion_face",
    "tiger": "tiger",
    "monkey": "monkey_face",
    "unicorn": "unicorn_face",
    "chick": "baby_chick",
    "dinosaur": "sauropod",
    "palm tree": "palm_tree",
    "pine tree": "evergreen_tree",
    "clover": "four_leaf_clover",
    "maple leaf": "maple_leaf",
    "smiling face": "grinning",
    "face in love": "heart_eyes",
    "face with sunglasses": "sunglasses",
    "crying face": "sob",
    "angry face": "rage",
    "clown": "clown_face",
    "robot": "robot_face",
    "pumpkin": "jack_o_lantern",
    "train": "steam_locomotive",
    "bicycle": "bike",
    "sailboat": "boat",
    "flying saucer": "flying_saucer",
    "billiard ball": "8ball",
    "dartboard": "dart",
    "clock": "clock3",
    "alarm clock": "alarm_clock",
    "moon": "crescent_moon",
    "sun": "sunny",
    "lightning": "zap",
    "drop": "droplet",
    "earth": "earth_americas",
    "snowman": "snowman_without_snow",
    "planet": "ringed_planet",
    "castle": "european_castle",
    "ferris wheel": "ferris_wheel",
    "light bulb": "bulb",
    "drum": "drum_with_drumsticks",
    "trumpet": "trumpet",
    "telephone": "phone",
    "book": "closed_book",
    "pencil": "pencil2",
    "top hat": "tophat",
    "diamond": "gem",
    "teddy bear": "teddy_bear",
    "die": "game_die",
    "musical note": "musical_note",
    "glasses": "eyeglasses",
}
# Subjects that are mostly of one hue in both styles.
_ONE_HUE = """
heart apple strawberry tomato chili cat fish whale octopus turtle crab chick dinosaur rose car star
moon drop umbrella bell telephone book balloon gift crown dress shirt magnet handbag
"""
COLOURABLE = (*_ONE_HUE.split(), "maple leaf", "teddy bear")
_UNCOUNTED = {
    *("broccoli", "cheese", "coffee", "corn", "fire", "lightning", "fries", "glasses", "scissors"),
    *("grapes", "cherries", "ice cream"),
}

# Colour -> (hue in degrees, how far towards white).
COLOURS = {
    "red": (356, 0.0),
    "yellow": (48, 0.15),
    "green": (125, 0.0),
    "blue": (212, 0.0),
    "purple": (272, 0.0),
    "pink": (335, 0.45),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "red": (244, 150, 150),
    "yellow": (255, 240, 150),
    "green": (165, 225, 165),
    "blue": (150, 200, 250),
    "purple": (205, 175, 245),
    "gray": (176, 176, 176),
}
PLACES = ("center", "top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Thing:
    """A subject and its colour; `colour=None` is as the vendor drew it."""

    subject: str
    colour: str | None = None

    @property
    def words(self) -> str:
        return f"{self.colour} {self.subject}" if self.colour else self.subject


@dataclass(frozen=True)
class Scene:
    """What is drawn.

    Attributes:
        things: one, or two from left to right.
        style: a key of `STYLES`.
        background: a key of `BACKGROUNDS`.
        place: one of `PLACES` for one small thing; None for one large thing, or for two.
    """

    things: tuple[Thing, ...]
    style: str
    background: str = "white"
    place: str | None = None

    def pairs(self) -> set[str]:
        """The compositions in it: "colour|subject", "subject on background"."""
        coloured = {f"{t.colour}|{t.subject}" for t in self.things if t.colour}
        on = {f"{t.subject} on {self.background}" for t in self.things if self.background != "white"}
        return coloured | on

    def unseen(self) -> bool:
        """Whether it holds a composition that training never sees."""
        return any(map(held_out, self.pairs()))

    def concepts(self) -> set[str]:
        """Names of the concepts that it is a member of: its subjects, colours, background and style."""
        colours = {thing.colour for thing in self.things if thing.colour}
        return (
            {thing.subject for thing in self.things}
            | colours
            | {
                f"{self.background} background",
                f"{self.style} style",
            }
        )


@cache
def held_out(pair: str) -> bool:
    """Whether a composition ("green|heart", "cat on blue") is kept from training: one in eight, by hash."""
    return hashlib.sha256(pair.encode()).digest()[0] < 32


def concepts() -> dict[str, str]:
    """Every concept that a caption can name -> its kind: subject, colour, background or style."""
    return {
        **dict.fromkeys(SUBJECTS, "subject"),
        **dict.fromkeys(COLOURS, "colour"),
        **{f"{name} background": "background" for name in BACKGROUNDS},
        **{f"{name} style": "style" for name in STYLES},
    }


def _thing(dice: random.Random) -> Thing:
    # A colourable subject has seven looks to learn, so it comes twice as often.
    subject = dice.choice((*SUBJECTS, *COLOURABLE))
    coloured = subject in COLOURABLE and dice.random() < 0.7
    return Thing(subject, dice.choice(tuple(COLOURS)) if coloured else None)


def draw(dice: random.Random) -> Scene:
    """One scene: 15 % with two things, 25 % with one small one; 40 % on white."""
    kind = dice.random()
    things = (_thing(dice), _thing(dice)) if kind < 0.15 else (_thing(dice),)
    place = dice.choice(PLACES) if 0.15 <= kind < 0.4 else None
    background = "white" if dice.random() < 0.4 else dice.choice(tuple(BACKGROUNDS)[1:])
    return Scene(things, dice.choice(tuple(STYLES)), background, place)


def _with_article(thing: Thing, size: str = "") -> str:
    words = f"{size} {thing.words}".strip()
    if thing.subject in _UNCOUNTED:
        return words
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('unicorn') else 'a'} {words}"


def caption(scene: Scene, dice: random.Random) -> str:
    """A caption of a scene, in words drawn at random; the style is named in 60 % of them."""
    things = [_with_article(thing) for thing in scene.things]
    if len(things) == 2:
        said = dice.choice(
            (
                f"{things[0]} and {things[1]}",
                f"{things[0]} to the left of {things[1]}",
                f"{things[1]} to the right of {things[0]}",
            )
        )
    elif scene.place:
        said = f"{_with_article(scene.things[0], 'small')} in the {scene.place}"
    else:
        said = things[0]
    if dice.random() < 0.6:
        said = dice.choice((f"a {scene.style} drawing of {said}", f"{said} in {scene.style} style"))
    else:
        said = dice.choice((said, f"an emoji of {said}"))
    # White goes without saying, most of the time.
    if scene.background != "white" or dice.random() < 0.3:
        said += dice.choice((" on a {} background", ", {} background")).format(scene.background)
    return said


def scene_at(split: str, index: int) -> tuple[Scene, str]:
    """Scene and caption number `index` of a split: "train", "test" (other draws of the same compositions) or
    "unseen" (each with a held-out composition).

    Raises:
        ValueError: an unknown split.
    """
    if split not in LENGTHS:
        raise unknown_name("split of emoji", split, LENGTHS)
    dice = random.Random(f"dmkit scenes 1 {split} {index}")
    while True:
        scene = draw(dice)
        if scene.unseen() == (split == "unseen"):
            return scene, caption(scene, dice)


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """An RGBA picture with its main hue turned to a colour of `COLOURS`; other hues (a leaf, an eye) stay.

    The main hue is the one with the most saturated pixels within 30 degrees; pixels within 50 degrees of it
    are turned.
    """
    hue, white = COLOURS[colour]
    pixels = np.asarray(picture.convert("RGB").convert("HSV")).astype(np.float32)
    alpha = np.asarray(picture.getchannel("A"))
    degrees = pixels[..., 0] * (360 / 255)
    vivid = (alpha > 127) & (pixels[..., 1] > 90) & (pixels[..., 2] > 60)

    def near(angle: float, within: float) -> np.ndarray:
        return np.abs((degrees - angle + 180) % 360 - 180) < within

    main = max(range(0, 360, 5), key=lambda angle: int((near(angle, 30) & vivid).sum()))
    turned = near(main, 50) & (pixels[..., 1] > 40)
    pixels[..., 0] = np.where(turned, hue * (255 / 360), pixels[..., 0])
    rgb = Image.fromarray(pixels.round().astype(np.uint8), "HSV").convert("RGB")
    lighter = Image.blend(rgb, Image.new("RGB", rgb.size, "white"), white)
    rgb.paste(lighter, mask=Image.fromarray(turned))
    rgb.putalpha(picture.getchannel("A"))
    return rgb


class Studio:
    """Draws scenes from the vendors' art; a subject beyond `SUBJECTS` is an emoji's short name.

    Args:
        art: by vendor.
        resolution: side of the pictures in pixels.
    """

    def __init__(self, art: Mapping[str, Art], resolution: int = RESOLUTION):
        self.art, self.resolution = art, resolution
        self._tiles: dict[tuple[str, Thing, int], Image.Image] = {}

    def _tile(self, style: str, thing: Thing, side: int) -> Image.Image:
        """A thing's picture (RGBA, side x side), kept once it is made."""
        key = style, thing, side
        if key not in self._tiles:
            self._tiles[key] = self._make_tile(*key)
        return self._tiles[key]

    def _make_tile(self, style: str, thing: Thing, side: int) -> Image.Image:
        picture = self.art[STYLES[style]].picture(SUBJECTS.get(thing.subject, thing.subject))
        if thing.colour:
            picture = recolour(picture, thing.colour)
        # Premultiplied, or the colour under transparent pixels would bleed into the edges.
        return picture.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")

    def draw(self, scene: Scene) -> Tensor:
        """uint8 (3, resolution, resolution)."""
        full = self.resolution
        large, small = round(full * 7 / 8), round(full * 15 / 32)
        edge, middle = full // 32, (full - small) // 2
        far = full - small - edge
        spots: list[tuple[int, int, int]]  # left, top, side
        if len(scene.things) == 2:
            spots = [(edge, middle, small), (far, middle, small)]
        elif scene.place is None:
            spots = [((full - large) // 2, (full - large) // 2, large)]
        else:
            x = far if "right" in scene.place else edge if "left" in scene.place else middle
            y = far if "bottom" in scene.place else edge if "top" in scene.place else middle
            spots = [(x, y, small)]
        canvas = Image.new("RGB", (full, full), BACKGROUNDS[scene.background])
        for thing, (x, y, side) in zip(scene.things, spots, strict=True):
            tile = self._tile(scene.style, thing, side)
            canvas.paste(tile, (x, y), tile)
        return to_tensor(canvas)


class _Captions(Sequence[str]):
    def __init__(self, split: str):
        self._split = split

    def __len__(self) -> int:
        return LENGTHS[self._split]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return scene_at(self._split, range(len(self))[index])[1]


def _decode(studio: Studio, split: str, index: int) -> Tensor:
    return studio.draw(scene_at(split, index)[0])


def load(split: str, resolution: int | None, root: Path | None) -> ImageDataset:
    """Captioned scenes of emoji: 60,000 to "train", 2,000 each in "test" and "unseen", 32x32 RGB by default.

    156 subjects in the styles of two vendors (`noto`, `twemoji`), some in six colours, on eight flat
    backgrounds, large, small in one of five places, or two side by side. Pictures are drawn when they are
    read.
    Source: the npm packages `emoji-datasource-google` and `-twitter`. Licence: code MIT, art Apache-2.0 and
    CC BY 4.0. Credit: Noto Emoji, Google LLC; Twemoji, Twitter, Inc. and other contributors.

    Raises:
        ValueError: an unknown split.
        MissingDataError: the vendors' packages are not fetched.
        FileFormatError: a damaged package.
    """
    if split not in LENGTHS:
        raise unknown_name("split of emoji", split, LENGTHS)
    captions = _Captions(split)
    side = resolution or RESOLUTION
    studio = Studio({vendor: Art.load(vendor, root) for vendor in STYLES.values()}, side)
    return ImageDataset(
        DecodedPixels(partial(_decode, studio, split), len(captions)),
        name="emoji",
        split=split,
        channels=3,
        resolution=side,
        captions=captions,
        license="MIT (packages); Apache-2.0 and CC BY 4.0 (art)",
        citation=f"{'; '.join(CREDITS.values())}; emoji-datasource {VERSION}, C. Henderson.",
    )
