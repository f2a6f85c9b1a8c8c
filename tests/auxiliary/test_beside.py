"""What a page says beside its paper is what the committed figures say."""

import importlib
from pathlib import Path

import pytest

from dmkit._files import load_json
from dmkit.data.corruptions import NAMES, parameters

ROOT = Path(__file__).parents[2]
METHODS = (
    *("ibcl", "rws", "bt2", "biper", "ef21w"),
    *("forwardgnn", "w2pgnn", "dbpm", "eeg_transfer", "fedka"),
)
# What some benchmarks import at their head.
NEEDS = {"forwardgnn": "torch_geometric", "w2pgnn": "ot", "eeg_transfer": "mne"}


@pytest.fixture(scope="module")
def rendering():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("_beside")


@pytest.mark.parametrize("name", METHODS)
def test_the_tables_beside_the_paper_are_rendered(name, rendering):
    pytest.importorskip(NEEDS.get(name, "torch"))
    content = load_json(ROOT / "docs" / "results" / f"{name}.json")
    found = importlib.import_module(name).beside(content)
    assert rendering.block(found) in (ROOT / "docs" / "methods" / f"{name}.md").read_text("utf-8")


def test_a_bar_without_a_sentence_is_refused(rendering):
    with pytest.raises(ValueError, match="do not go together: asked"):
        rendering.Beside([], "", {"asked": (1, True)}, {}).text()


def test_a_third_answer_is_said_as_it_is(rendering):
    bars = {"a": (1, True), "b": (0, False), "c": (0.1, "not shown")}
    text = rendering.Beside([], "", bars, dict.fromkeys(bars, "why")).text()
    assert [line.split(" | ")[2] for line in text.splitlines()[-3:]] == ["met", "**missed**", "not shown"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2.0, 3.0, 2.5], True), ([0.1, 3.0, -2.0], "in doubt"), ([-1.0, 0.5], False), ([1.0], "in doubt")],
)
def test_a_difference_within_its_deviation_is_in_doubt(values, expected, rendering):
    assert importlib.import_module("_tables").beyond(values, "in doubt") == expected


def test_a_page_without_marks_is_refused(rendering, tmp_path, monkeypatch):
    (tmp_path / "x.md").write_text("# X\n")
    monkeypatch.setattr(rendering, "PAGES", tmp_path)
    with pytest.raises(ValueError, match="lacks <!-- from the result file"):
        rendering.fill("x", rendering.Beside([], "", {}, {}))


def test_severities_are_those_of_the_32_pixel_script():
    assert [parameters("gaussian_noise", s) for s in (1, 5)] == [(0.04,), (0.1,)]
    assert parameters("motion_blur", 5) == (9, 2.5)
    assert all(len(parameters(name, s)) for name in NAMES for s in (1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="severity is 1 to 5, not 6"):
        parameters("fog", 6)
