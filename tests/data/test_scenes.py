"""Captioned scenes: what is drawn is what is said, and what is held out is never trained on."""

import colorsys
import hashlib
import pickle
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import emoji_archive, flat_emoji_archive
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dmkit import data
from dmkit.data import emoji, scenes
from dmkit.data.scenes import BACKGROUNDS, COLOURABLE, COLOURS, LENGTHS, STYLES, SUBJECTS, Scene, Thing
from dmkit.errors import MissingDataError

VALUES = {"google": 0.9, "twitter": 0.6}  # how bright the flat art of a vendor is


def flat_colours(vendor: str) -> dict[str, tuple[int, int, int]]:
    """A vivid colour of its own for every subject, brighter for one vendor than for the other."""
    names = list(SUBJECTS.values())
    hues = {name: colorsys.hsv_to_rgb(k / len(names), 1, VALUES[vendor]) for k, name in enumerate(names)}
    return {name: tuple(round(255 * part) for part in colour) for name, colour in hues.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for vendor in STYLES.values():
        (root / emoji.archive(vendor)).write_bytes(flat_emoji_archive(vendor, flat_colours(vendor)))
    return root


@pytest.fixture(scope="module")
def studio(root) -> scenes.Studio:
    return scenes.Studio({vendor: emoji.Art.load(vendor, root) for vendor in STYLES.values()})


def drawn(seed: int) -> tuple[Scene, str]:
    """A scene of any composition, with its caption."""
    dice = random.Random(seed)
    scene = scenes.draw(dice)
    return scene, scenes.caption(scene, dice)


any_seed = st.integers(0, 10**6)
quickly = settings(max_examples=150, deadline=None)

# --- splits ----------------------------------------------------------------------------------------------


def compositions(scene: Scene) -> set[str]:
    found = set()
    for thing in scene.things:
        if thing.colour is not None:
            found.add(f"{thing.colour}|{thing.subject}")
        if scene.background != "white":
            found.add(f"{thing.subject} on {scene.background}")
    return found


def kept_from_training(composition: str) -> bool:
    return int(hashlib.sha256(composition.encode()).hexdigest()[:2], 16) < 256 // 8


@settings(max_examples=400, deadline=None)
@given(index=st.integers(0, 59_999), split=st.sampled_from(sorted(LENGTHS)))
def test_only_unseen_holds_compositions_that_are_held_out_and_always(index, split):
    scene, _ = scenes.scene_at(split, index)
    assert any(map(kept_from_training, compositions(scene))) == (split == "unseen")


def test_about_an_eighth_of_the_compositions_is_held_out():
    coloured = [f"{colour}|{subject}" for subject in COLOURABLE for colour in COLOURS]
    placed = [f"{subject} on {ground}" for subject in SUBJECTS for ground in BACKGROUNDS if ground != "white"]
    for pairs in (coloured, placed):
        share = sum(map(scenes.held_out, pairs)) / len(pairs)
        assert abs(share - 1 / 8) < 4 * (1 / 8 * 7 / 8 / len(pairs)) ** 0.5
    # Training still sees every subject, colour and background, in other company.
    seen = [pair for pair in coloured if not scenes.held_out(pair)]
    assert {pair.split("|")[0] for pair in seen} == set(COLOURS)
    assert {pair.split("|")[1] for pair in seen} == set(COLOURABLE)


@pytest.mark.parametrize(
    ("split", "known"),
    [("train", "2b719d2771bc0ec5"), ("test", "59498f36dccf607e"), ("unseen", "9afdead65ae5f02b")],
)
def test_captions_are_those_that_the_shipped_model_was_trained_on(split, known):
    captions = "\n".join(scenes.scene_at(split, index)[1] for index in range(500))
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == known


def test_scenes_are_a_function_of_split_and_index(root):
    first, second = (data.load("emoji", "test", root=root) for _ in range(2))
    indices = [3, 1999, 0]
    assert torch.equal(first.images_uint8(indices), second.images_uint8(indices))
    assert [first.captions[k] for k in indices] == [second.captions[k] for k in indices]
    assert first.captions[-1] == first.captions[1999] == first[1999]["captions"]
    assert list(first.captions[:3]) == [first[k]["captions"] for k in range(3)]
    with pytest.raises(IndexError):
        first.captions[2000]
    train = data.load("emoji", root=root)
    assert (len(train), len(first), len(data.load("emoji", "unseen", root=root))) == (60_000, 2_000, 2_000)
    assert sum(train.captions[k] == first.captions[k] for k in range(50)) < 3


def test_a_loader_process_gets_the_same_pictures(root):
    """Loader processes may be started afresh, with the data set sent to them."""
    dataset = data.load("emoji", "test", root=root)
    before = dataset.images_uint8([4, 5])
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).images_uint8([4, 5]), before)


# --- captions --------------------------------------------------------------------------------------------

FILLER = {"a", "an", "and", "the", "to", "of", "in", "on", "left", "right", "emoji"}


@quickly
@given(seed=any_seed)
def test_a_caption_says_what_is_drawn_and_nothing_else(seed):
    scene, caption = drawn(seed)
    rest = caption.replace(",", "")
    for thing in scene.things:
        assert thing.words in rest
        rest = rest.replace(thing.words, "", 1)
    if scene.place:
        assert f"in the {scene.place}" in caption
        assert "small" in caption
        rest = rest.replace(f"in the {scene.place}", "", 1).replace("small", "", 1)
    if scene.background != "white" or "background" in caption:
        assert f"{scene.background} background" in caption
        rest = rest.replace(f"{scene.background} background", "", 1)
    rest = rest.replace(f"{scene.style} drawing", "").replace(f"{scene.style} style", "")
    assert set(rest.split()) <= FILLER
    assert caption.isascii()
    assert caption == caption.lower()


@quickly
@given(seed=any_seed)
def test_articles_fit_the_word_that_follows(seed):
    _, caption = drawn(seed)
    words = caption.replace(",", "").split()
    for article, word in pairwise(words):
        if article in ("a", "an"):
            vowel = word[0] in "aeiou" and word != "unicorn"
            assert (article == "an") == vowel, caption
            assert word not in ("fries", "glasses", "scissors", "grapes", "cherries", "broccoli"), caption


@quickly
@given(seed=any_seed)
def test_left_and_right_are_as_drawn(seed):
    left, right = Thing("star"), Thing("key")
    dice = random.Random(seed)
    caption = scenes.caption(Scene((left, right), "noto"), dice)
    order = caption.index("star") < caption.index("key")
    assert order == ("to the right of" not in caption)


@quickly
@given(seed=any_seed)
def test_every_concept_of_a_scene_is_one_that_is_listed(seed):
    scene, _ = drawn(seed)
    kinds = [scenes.concepts()[concept] for concept in sorted(scene.concepts())]
    assert kinds.count("background") == kinds.count("style") == 1
    assert kinds.count("subject") == len({thing.subject for thing in scene.things})
    assert kinds.count("colour") == len({thing.colour for thing in scene.things} - {None})


def test_concepts_have_one_name_each_and_all_are_drawn():
    concepts = scenes.concepts()
    assert len(concepts) == len(SUBJECTS) + len(COLOURS) + len(BACKGROUNDS) + len(STYLES)
    found = set().union(*(drawn(seed)[0].concepts() for seed in range(3000)))
    assert found == set(concepts)


def test_how_often_each_kind_of_scene_is_drawn():
    many = [drawn(seed) for seed in range(4000)]
    shares = {
        0.15: [len(scene.things) == 2 for scene, _ in many],
        0.25: [scene.place is not None for scene, _ in many],
        0.40: [scene.background == "white" for scene, _ in many],
        0.60: [scene.style in caption for scene, caption in many],
        0.50: [scene.style == "noto" for scene, _ in many],
    }
    for share, hits in shares.items():
        assert abs(sum(hits) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


# --- pictures --------------------------------------------------------------------------------------------


def expected_colour(scene: Scene, thing: Thing) -> np.ndarray:
    vendor = STYLES[scene.style]
    return np.array(flat_colours(vendor)[SUBJECTS[thing.subject]])


@quickly
@given(seed=any_seed)
def test_things_are_where_the_scene_says_and_the_rest_is_background(studio, seed):
    scene, _ = drawn(seed)
    picture = studio.draw(scene).permute(1, 2, 0).numpy().astype(int)
    filled = (picture != BACKGROUNDS[scene.background]).any(-1)
    halves = [filled] if len(scene.things) == 1 else [filled.copy(), filled.copy()]
    if len(halves) == 2:
        halves[0][:, 16:], halves[1][:, :16] = False, False
    for thing, part in zip(scene.things, halves, strict=True):
        rows, columns = np.nonzero(part)
        small = len(scene.things) == 2 or scene.place is not None
        side = 15 if small else 28
        assert len(rows) == side**2
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (side, side)
        colours = picture[part]
        if thing.colour is None:
            assert (colours == expected_colour(scene, thing)).all()
        else:
            hue, _, value = colorsys.rgb_to_hsv(*colours[0] / 255)
            assert abs((hue * 360 - COLOURS[thing.colour][0] + 180) % 360 - 180) < 4
            assert value >= VALUES[STYLES[scene.style]] - 0.02
    rows, columns = np.nonzero(filled)
    place = scene.place or ""
    for name, middle in (
        ("top", rows.mean() < 10),
        ("bottom", rows.mean() > 21),
        ("left", columns.mean() < 10),
        ("right", columns.mean() > 21),
    ):
        assert middle == (name in place)


@pytest.mark.parametrize("resolution", [32, 48, 64])
def test_scenes_come_in_any_size(root, resolution):
    dataset = data.load("emoji", "test", resolution=resolution, root=root)
    pictures = dataset.images_uint8(range(20))
    assert pictures.shape == (20, 3, resolution, resolution)
    assert all((picture != picture[:, :1, :1]).any() for picture in pictures)


def test_art_is_pasted_by_its_alpha(root):
    """A disc on blue leaves the corners of its square blue, and no edge darker than both."""
    side = np.arange(64) - 31.5
    disc = np.zeros((64, 64, 4), np.uint8)
    disc[np.hypot(*np.meshgrid(side, side)) < 30] = (255, 255, 255, 255)  # black where it is transparent

    class Disc:
        def picture(self, name):
            return Image.fromarray(disc)

    studio = scenes.Studio(dict.fromkeys(STYLES.values(), Disc()))
    picture = studio.draw(Scene((Thing("moon"),), "noto", "blue")).permute(1, 2, 0).numpy()
    assert (picture[3, 3] == BACKGROUNDS["blue"]).all()
    assert (picture[16, 16] == 255).all()
    assert (picture >= np.array(BACKGROUNDS["blue"]) - 2).all()


def hsv(picture: Image.Image) -> np.ndarray:
    """Hue in degrees, saturation, value."""
    return np.asarray(picture.convert("RGB").convert("HSV")).astype(float) * (360 / 255, 1, 1)


def apart(hue, other) -> np.ndarray:
    return np.abs((hue - other + 180) % 360 - 180)


@quickly
@given(
    main=st.integers(0, 359),
    away=st.integers(90, 270),
    colour=st.sampled_from(sorted(COLOURS)),
    alphas=st.tuples(st.integers(128, 255), st.integers(0, 255)),
)
def test_recolouring_turns_the_main_hue_and_leaves_the_rest(main, away, colour, alphas):
    """A large patch, a small one of a hue at least 90 degrees off, and a grey one."""
    pixels = np.zeros((12, 12, 4), np.uint8)

    def paint(rows, hue, saturation, alpha):
        rgb = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, 0.8)
        pixels[rows] = (*(round(255 * part) for part in rgb), alpha)

    paint(slice(0, 7), main, 0.9, alphas[0])
    paint(slice(7, 10), main + away, 0.9, 255)
    paint(slice(10, 12), 0, 0.0, alphas[1])
    before = Image.fromarray(pixels)
    after = scenes.recolour(before, colour)
    assert np.array_equal(np.asarray(after)[..., 3], pixels[..., 3])
    target, white = COLOURS[colour]
    turned = hsv(after)[:7]
    assert apart(turned[..., 0], target).max() < 4
    assert (np.asarray(after)[:7, :, :3].max(-1) >= 0.8 * 255 + white * 51 - 4).all()
    unchanged = np.abs(np.asarray(after).astype(int) - np.asarray(before))[7:]
    assert unchanged.max() <= 6  # a trip through 8-bit HSV


# --- errors ----------------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_near_one(root, studio):
    for load in (
        lambda: data.load("emoji", "unsen", root=root),
        lambda: scenes.load("unsen", None, root),
        lambda: scenes.scene_at("unsen", 0),
    ):
        with pytest.raises(ValueError, match=r"Unknown split of emoji 'unsen'. Did you mean 'unseen'"):
            load()
    with pytest.raises(ValueError, match=r"Unknown emoji 'hart'. Did you mean 'heart'"):
        studio.art["google"].picture("hart")


def test_missing_packages_are_named(root, tmp_path):
    with pytest.raises(MissingDataError, match=r"python -m dmkit.data.fetch emoji-google"):
        data.load("emoji", root=tmp_path)
    for vendor in STYLES.values():
        (tmp_path / emoji.archive(vendor)).write_bytes(emoji_archive(vendor))
    with pytest.raises(ValueError, match="Unknown emoji"):  # a package without the subjects
        data.load("emoji", root=tmp_path)[0]


# --- the real art ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def art() -> dict[str, emoji.Art]:
    try:
        return {vendor: emoji.Art.load(vendor) for vendor in STYLES.values()}
    except MissingDataError as error:
        pytest.skip(str(error))


def test_both_vendors_draw_every_subject_and_no_two_alike(art):
    for vendor in art.values():
        pictures = {vendor.picture(name).tobytes() for name in SUBJECTS.values()}
        assert len(pictures) == len(SUBJECTS)
        assert vendor.picture("heart").size == (64, 64)


@pytest.mark.parametrize("vendor", sorted(VALUES))
def test_real_subjects_take_every_colour(art, vendor):
    """Of the vivid pixels of a recoloured drawing most have the hue asked for, and its outline stays."""
    for subject in COLOURABLE:
        plain = art[vendor].picture(SUBJECTS[subject])
        for colour, (hue, _) in COLOURS.items():
            picture = scenes.recolour(plain, colour)
            assert picture.getchannel("A").tobytes() == plain.getchannel("A").tobytes()
            pixels = hsv(picture)
            vivid = (np.asarray(plain.getchannel("A")) > 127) & (pixels[..., 1] > 40) & (pixels[..., 2] > 40)
            assert (apart(pixels[..., 0][vivid], hue) < 12).mean() > 0.6, (subject, colour)


def test_the_real_scenes(art):
    unseen = data.load("emoji", "unseen", resolution=32)
    items = unseen.__getitems__(range(60))
    for index, item in enumerate(items):
        assert item["images"].shape == (3, 32, 32)
        scene, caption = scenes.scene_at("unseen", index)
        assert item["captions"] == caption
        ground = torch.tensor(BACKGROUNDS[scene.background]) / 127.5 - 1
        at_ground = (item["images"] - ground[:, None, None]).abs().amax(0) < 0.05
        assert 0.1 < at_ground.float().mean() < 0.95, caption
