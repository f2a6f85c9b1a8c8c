"""The controlled experiment of `benchmarks/time_shift_controlled.py`, in its two bar settings."""

from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import time_shift_controlled

        yield time_shift_controlled


@pytest.fixture(scope="module")
def experiments(benchmark):
    return [benchmark.Experiment(seed) for seed in benchmark.SEEDS]


@pytest.mark.parametrize(("phi", "steps", "window", "bar"), [(0.2, 10, 20, 0.85), (0.1, 5, 80, 0.80)])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.filterwarnings("ignore:These look like")
def test_label_mode_helps_against_exposure_bias_and_level_mode_does_not(
    benchmark, experiments, phi, steps, window, bar, scope
):
    def mean_ratio(mode):
        options = benchmark.options(window, mode, scope)
        return mean(e.distance(phi, steps, **options) / e.distance(phi, steps) for e in experiments)

    assert mean_ratio("label") <= bar
    assert mean_ratio("level") > 1.5  # the two modes were not swapped
