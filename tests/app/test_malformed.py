"""Malformed values straight at the functions of the tabs: each is refused in one line, no file is touched.

The values come from a seed; one argument of a good call at a time is replaced. Whatever else than a
`ValueError` or a `DmkitError` is raised would be a traceback in the server's log.
"""

import random

import pytest
from PIL import Image

from dmkit.app import edit, erase, limits, one_step, sample, train
from dmkit.app.jobs import Job
from dmkit.errors import DmkitError

CANARY = "canary-7c1f"
NAN, INF = float("nan"), float("inf")
OF_WRONG_TYPES = (None, True, [], [1], {}, {"path": "x"}, {"a": {"b": 1}}, b"x", [[]], 1j)
NUMBERS = (NAN, INF, -INF, -3, -1e308, 10**400, 10**12, 1e308, "12", "", "many", *OF_WRONG_TYPES)
WHOLE = (-1, 2.5, *NUMBERS)
TEXTS = ("", " ", "a\nb", "a\0b", "\x1b[31m", "x" * 301, "\u202e", 7, NAN, *OF_WRONG_TYPES)
NAMES = ("../{canary}", "{canary}", "/etc/passwd", "google/ddpm-cat-256", "emojy", "a\0b", "", 7, NAN)
CHOICES = (*NAMES, "x" * 10_000, *OF_WRONG_TYPES)
SCALES = ("nan", "inf", "0, -1", "1e999", "0;1", ",".join("0123456"), ",", *TEXTS)
WINDOWS = ("wide", "nan", "inf", "-1", "1e9", NAN, INF, -1, 2.5, *OF_WRONG_TYPES)

KINDS = {
    **dict.fromkeys(("model", "sampler", "other", "method", "mode", "recipe"), CHOICES),
    **dict.fromkeys(
        ("prompt", "source_prompt", "target_prompt", "target", "negative_prompt", "control"), TEXTS
    ),
    **dict.fromkeys(("steps", "num_images", "seed", "few", "max_train_steps"), WHOLE),
    **dict.fromkeys(("guidance_scale", "strength", "factor"), NUMBERS),
    **dict.fromkeys(("time_shift_window", "time_shift_cutoff"), WINDOWS),
    "scales": SCALES,
}
OPTIONAL = ("negative_prompt", "control")  # what is false or blank is none, and good; but not for steering


def calls(store, adapters, root):
    """A function of every tab, and the arguments of a call that would be accepted."""
    picture = Image.new("RGB", (32, 32), "red")
    file = adapters / "heart" / "heart.safetensors"
    common = {"model": "emoji", "prompt": "a cat", "steps": 2, "num_images": 1, "seed": 0}

    def erased(factor, **given):
        return erase.erase(store, Job(), adapters=[(file, factor)], **given)

    def inverted(**given):
        return edit.inversion(store, Job(), picture=picture, **given)

    def edited(**given):
        return edit.editing(store, Job(), picture=picture, **given)

    return {
        "sample": (
            lambda **given: sample.sample(store, Job(), **given),
            {
                **common,
                **{"negative_prompt": "", "sampler": "ddim", "other": "ts-ddim", "guidance_scale": 3.0},
                **{"time_shift_window": "auto", "time_shift_cutoff": "auto"},
            },
        ),
        "invert": (inverted, {"model": "emoji", "steps": 2, "guidance_scale": 1.0}),
        "edit": (
            edited,
            {
                **{"model": "emoji", "source_prompt": "a", "target_prompt": "b", "steps": 3},
                **{"guidance_scale": 3.0, "strength": 0.8, "method": "bdia"},
            },
        ),
        "erase": (erased, {**common, "control": "", "guidance_scale": 3.0, "factor": 1.0}),
        "steer": (
            lambda **given: one_step.steer(store, Job(), **given),
            {**common, "negative_prompt": "red", "mode": "nasa", "scales": "0.4"},
        ),
        "compare": (
            lambda **given: one_step.compare(store, Job(), **given),
            {**common, "few": 1, "guidance_scale": 3.0},
        ),
        "train": (
            lambda recipe, **given: train.command(recipe, root / "run", **given),
            {"recipe": "spm", "max_train_steps": 10, "seed": 0, "target": "a cat"},
        ),
    }


def malformed(tabs, canary, count, seed=0):
    """(tab, argument, value), `count` different ones."""
    every = [
        (tab, name, value.format(canary=canary) if isinstance(value, str) and "{" in value else value)
        for tab, (_, good) in tabs.items()
        for name in good
        for value in KINDS[name]
        if name not in OPTIONAL or tab == "steer" or (value and value != " ")
    ]
    return random.Random(seed).sample(every, count)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_no_malformed_value_gets_through(store, adapters, tmp_path, monkeypatch):
    (tmp_path / CANARY).mkdir()
    canary = tmp_path / CANARY / "model_index.json"
    canary.write_text(CANARY)
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    tabs, before = calls(store, adapters, root), (files(tmp_path), files(adapters))

    def no_sampling(*_, **__):
        raise AssertionError("it was sampled")

    monkeypatch.setattr("dmkit.sampling.generate", no_sampling)
    monkeypatch.setattr("dmkit.schedulers.invert", no_sampling)
    monkeypatch.setattr("dmkit.schedulers.edit_image", no_sampling)
    wrong = []
    for tab, name, value in malformed(tabs, CANARY, 500):
        function, good = tabs[tab]
        try:
            function(**{**good, name: value})
        except (ValueError, DmkitError) as error:
            if CANARY in str(error).replace(str(value), "") or len(str(error)) > 900:
                wrong.append(f"{tab}, {name}={value!r:.60}: said {str(error)[:200]}")
        except BaseException as error:
            wrong.append(f"{tab}, {name}={value!r:.60}: {type(error).__name__}: {str(error)[:80]}")
        else:
            wrong.append(f"{tab}, {name}={value!r:.60}: was accepted")
    assert not wrong, "\n".join(wrong)
    assert (files(tmp_path), files(adapters)) == before


def test_the_good_calls_are_good(store, adapters, tmp_path):
    """Otherwise a refusal above would say nothing about the value."""
    for function, good in calls(store, adapters, tmp_path).values():
        assert function(**good)


@pytest.mark.parametrize("value", OF_WRONG_TYPES)
def test_no_path_is_made_of_a_wrong_type(value, tmp_path):
    with pytest.raises(ValueError, match="not one that was uploaded"):
        limits.inside(value, [tmp_path])


@pytest.mark.parametrize("value", ["heart", b"heart", 7, True, {"heart": 1}, NAN])
def test_adapters_come_as_lists(value, adapters, tmp_path):
    pytest.importorskip("gradio", reason="the demo needs the extra app")
    from dmkit.app.page.erase import chosen_files
    from dmkit.app.page.parts import Desk
    from dmkit.app.train import Trainings

    desk = Desk(None, Trainings(tmp_path), [adapters])
    assert [path.stem for path in chosen_files(desk, ["heart"], None)] == ["heart"]
    with pytest.raises(ValueError, match="The adapters must be a list, not "):
        chosen_files(desk, value, None)
    with pytest.raises(ValueError, match="Your adapters must be a list, not "):
        chosen_files(desk, [], value)
    with pytest.raises(ValueError, match="Unknown adapter"):
        chosen_files(desk, [[value]], None)
    desk.close()
