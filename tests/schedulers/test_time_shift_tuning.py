"""The grid over window and cut-off."""

import json
import math

import pytest

from dmkit.schedulers import TimeShiftDDIMScheduler
from dmkit.schedulers.tuning import tune_time_shift


class Bowl:
    """A score with its lowest point at (40, 200), that keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, *, time_shift_window, time_shift_cutoff):
        self.asked.append((time_shift_window, time_shift_cutoff))
        return (time_shift_window - 40) ** 2 + abs(time_shift_cutoff - 200)


def test_grid_is_evaluated_once_each_and_window_0_once_in_all():
    score = Bowl()
    result = tune_time_shift(score, (0, 20, 40), (100, 200, 300))
    assert [w for w, _ in score.asked].count(0) == 1
    expected = {(w, c) for w in (20, 40) for c in (100, 200, 300)}
    assert {(w, c) for w, c in score.asked if w} == expected
    assert len(score.asked) == 7
    assert [(row.window, row.cutoff) for row in result.rows] == score.asked
    assert [row.score for row in result.rows] == [Bowl()(**row.overrides) for row in result.rows]


def test_best_is_the_lowest_score_and_builds_a_scheduler():
    best = tune_time_shift(Bowl(), (0, 20, 40), (100, 200, 300)).best
    assert best == {"time_shift_window": 40, "time_shift_cutoff": 200}
    config = TimeShiftDDIMScheduler.from_config(TimeShiftDDIMScheduler().config, **best).config
    assert (config.time_shift_window, config.time_shift_cutoff) == (40, 200)
    worse = tune_time_shift(lambda **s: float(s["time_shift_window"]), (0, 20), ("auto", 300)).best
    assert worse == {"time_shift_window": 0, "time_shift_cutoff": "auto"}
    assert TimeShiftDDIMScheduler(**worse).config.time_shift_cutoff == "auto"


def test_result_is_json_and_a_table():
    result = tune_time_shift(Bowl(), (0, 40), (200, 300))
    assert json.loads(json.dumps(result.to_dict())) == {
        "rows": [
            {"time_shift_window": 0, "time_shift_cutoff": 200, "score": 1600.0},
            {"time_shift_window": 40, "time_shift_cutoff": 200, "score": 0.0},
            {"time_shift_window": 40, "time_shift_cutoff": 300, "score": 100.0},
        ],
        "best": {"time_shift_window": 40, "time_shift_cutoff": 200},
    }
    assert result.table().splitlines() == [
        "| window | cutoff | score |",
        "| --- | --- | --- |",
        "| 0 | any | 1600 |",
        "| 40 | 200 | **0** |",
        "| 40 | 300 | 100 |",
    ]


def test_result_cannot_be_changed():
    with pytest.raises(AttributeError):
        tune_time_shift(Bowl(), (0,), (200,)).rows = ()


@pytest.mark.parametrize(("windows", "cutoffs", "name"), [((), (200,), "windows"), ((20,), (), "cutoffs")])
def test_an_empty_grid_is_refused(windows, cutoffs, name):
    with pytest.raises(ValueError, match=f"at least one value in {name}, got none"):
        tune_time_shift(Bowl(), windows, cutoffs)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_names_its_setting(score):
    with pytest.raises(
        ValueError, match=rf"returned {score} for time_shift_window=20, time_shift_cutoff=300"
    ):
        tune_time_shift(lambda **_: score, (20,), (300,))
