"""Downstream scaling laws: exact recovery, invariances, intervals, the guide."""

import math

import numpy as np
import pytest

from dmkit.auxiliary.scaling.downstream_scaling import (
    Curve,
    LogLaw,
    PowerLaw,
    compare,
    diagnose,
    fit,
    language_alignment,
    plot,
    trend,
)
from dmkit.auxiliary.scaling.downstream_scaling.fitting import _refit, huber

DATA = np.array([1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11])
SCORES = (-2 + 0.35 * np.log(DATA)) ** 1.9
LOSSES = 1.2 + 50 / DATA**0.2


def noisy(sd, seed, scores=SCORES):
    return scores * np.exp(sd * np.random.default_rng(seed).standard_normal(len(scores)))


# -- the laws


def test_the_examples_have_the_papers_form():
    np.testing.assert_allclose(SCORES, [17.036, 19.943, 23.377, 26.735, 30.660, 34.462, 38.870], atol=6e-4)
    np.testing.assert_allclose(LOSSES, [2.4559, 2.2082, 1.9924, 1.8361, 1.7, 1.6014, 1.5155], atol=6e-5)


@pytest.mark.parametrize("law", [LogLaw(), PowerLaw()])
@pytest.mark.parametrize("theta", [(0.3, 0.4, 0.7), (1.2, 0.05, 1e-6), (2.0, 1e-4, 0.5)])
def test_derivatives_are_those_of_finite_differences(law, theta):
    theta, d = np.array(theta), np.linspace(0, 7, 8)
    _, slopes = law.log_value(theta, d)
    steps = 3e-5 * np.eye(3)  # beyond γ = 0, too, where the curve is smooth
    differences = [law.log_value(theta + s, d)[0] - law.log_value(theta - s, d)[0] for s in steps]
    np.testing.assert_allclose(slopes, np.stack(differences, axis=1) / 6e-5, rtol=1e-5, atol=1e-6)


def test_gradient_of_the_objective():
    """Central differences of the Huber loss, some residuals beyond δ."""
    law, theta = LogLaw(), np.array([2.7, 0.15, 0.6])
    d, log_y = np.log(DATA / DATA[0]), np.log(noisy(0.3, 0))

    def loss(t):
        return huber(law.log_value(t, d)[0] - log_y, law.delta).sum()

    value, slopes = law.log_value(theta, d)
    assert (np.abs(value - log_y) > law.delta).any()
    found = np.clip(value - log_y, -law.delta, law.delta) @ slopes
    steps = 1e-6 * np.eye(3)
    np.testing.assert_allclose(found, [(loss(theta + s) - loss(theta - s)) / 2e-6 for s in steps], rtol=1e-6)


# -- fits


def test_noiseless_points_give_the_law_back():
    found = fit(LogLaw(), DATA, SCORES, first=4)
    assert found.coefficients == pytest.approx({"log_A": -2, "alpha": 0.35, "beta": 1.9}, abs=1e-6)
    assert found.held_out(DATA[4:], SCORES[4:])["max"] < 1e-8
    assert found.at_bound == []
    found = fit(PowerLaw(), DATA, LOSSES, first=4)
    assert found.coefficients == pytest.approx({"E": 1.2, "log_A": math.log(50), "alpha": 0.2}, abs=1e-8)
    np.testing.assert_allclose(np.exp(found.log_value(DATA)), LOSSES, rtol=1e-9)


@pytest.mark.parametrize(
    ("log_A", "alpha", "beta"), [(-10, 1.0, 1.0), (0.5, 0.1, 3.0), (-1, 0.2, 0.5), (0, 0.1, 5)]
)
def test_other_laws_are_recovered_too(log_A, alpha, beta):
    scores = (log_A + alpha * np.log(DATA)) ** beta
    found = fit(LogLaw(), DATA, scores, first=4).coefficients
    assert found == pytest.approx({"log_A": log_A, "alpha": alpha, "beta": beta}, rel=1e-5, abs=1e-5)


def test_a_unit_of_data_moves_only_a():
    one, other = fit(LogLaw(), DATA, noisy(0.02, 1)), fit(LogLaw(), DATA / 1e6, noisy(0.02, 1))
    np.testing.assert_allclose(one.predict(DATA), other.predict(DATA / 1e6), rtol=1e-6)
    a, b = one.coefficients, other.coefficients
    assert (a["alpha"], a["beta"]) == pytest.approx((b["alpha"], b["beta"]), rel=1e-4)
    assert b["log_A"] - a["log_A"] == pytest.approx(6 * a["alpha"] * math.log(10), rel=1e-4)


@pytest.mark.parametrize(("law", "scores"), [(LogLaw(), SCORES), (PowerLaw(), LOSSES)])
def test_a_unit_of_the_score_scales_predictions(law, scores):
    y = noisy(0.01, 2, scores)
    one, other = fit(law, DATA, y), fit(law, DATA, 7 * y)
    np.testing.assert_allclose(7 * one.predict(DATA), other.predict(DATA), rtol=1e-6)


def test_order_does_not_matter_and_seeds_are_averaged():
    y, order = noisy(0.02, 3), [4, 0, 6, 2, 5, 1, 3]
    one = fit(LogLaw(), DATA, y)
    assert fit(LogLaw(), DATA[order], y[order]).coefficients == one.coefficients
    twice = fit(LogLaw(), np.tile(DATA, 2), np.r_[1.1 * y, 0.9 * y])
    np.testing.assert_allclose(twice.predict(DATA), one.predict(DATA), rtol=1e-6)
    assert twice.curve.seeds.tolist() == [2] * 7
    assert twice.freedom == 11
    assert twice.curve.noise == pytest.approx(math.log(11 / 9) / math.sqrt(2), rel=1e-9)


def test_beta_1_is_the_straight_line_in_log_d():
    scores = -30 + 2.5 * np.log(DATA)
    line = np.polyfit(np.log(DATA), scores, 1)
    found = fit(LogLaw(), DATA, scores)
    assert found.coefficients["beta"] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.predict([5e11]), np.polyval(line, np.log([5e11])), rtol=1e-6)


def test_a_large_beta_is_the_power_law():
    scores = 0.01 * DATA**0.3
    found = fit(LogLaw(beta_max=1e6, delta=10), DATA, scores)
    slope, first = np.polyfit(np.log(DATA), np.log(scores), 1)
    np.testing.assert_allclose(found.log_value(DATA), first + slope * np.log(DATA), atol=1e-4)
    with pytest.warns(UserWarning, match="beta of the fit is at its bound"):
        fit(LogLaw(), DATA, 0.01 * DATA**0.6).predict(DATA)


def test_a_large_delta_is_least_squares_and_a_small_one_robust():
    from scipy.optimize import least_squares

    y = noisy(0.03, 4)
    found = fit(LogLaw(delta=1e3), DATA, y)
    d = np.log(DATA / DATA[0])
    best = least_squares(lambda t: LogLaw().log_value(t, d)[0] - np.log(y), found.theta * 1.05, x_scale="jac")
    assert found.loss == pytest.approx(best.cost, rel=1e-6)
    outlier = SCORES * np.where(np.arange(7) == 3, 1.5, 1)
    errors = [fit(LogLaw(delta=delta), DATA, outlier).held_out([1e12], [(-2 + 0.35 * math.log(1e12)) ** 1.9])
              for delta in (0.01, 0.1, 10)]  # fmt: skip
    assert errors[0]["max"] < errors[1]["max"] < errors[2]["max"]


def test_huber():
    np.testing.assert_allclose(huber(np.array([-0.05, 0.1, 0.3, -1]), 0.1), [0.00125, 0.005, 0.025, 0.095])


def test_predictions_far_away_warn_and_below_the_domain_are_nan():
    found = fit(LogLaw(), DATA, SCORES)
    with pytest.warns(UserWarning, match="20 times the largest fitted D"):
        found.predict(2e12)
    assert np.isnan(found.predict([1.0]))[0]  # log(A D^α) is negative


# -- intervals


def test_intervals_hold_the_truth_and_widen():
    found = fit(LogLaw(), np.tile(DATA, 3), np.concatenate([noisy(0.01, seed) for seed in (5, 6, 7)]))
    lower, upper = found.interval(DATA)
    assert ((lower < SCORES) & (upper > SCORES)).mean() >= 6 / 7
    measured = found.interval(DATA, measured=True)
    assert (measured[0] < lower).all()
    assert (measured[1] > upper).all()
    ahead = [np.log(high / low) for low, high in [found.interval(D) for D in (1e11, 1e12)]]
    assert ahead[0] < ahead[1]
    ends = found.coefficient_intervals()
    assert ends["alpha"][0] < 0.35 < ends["alpha"][1]
    assert ends["beta"][0] < 1.9 < ends["beta"][1]
    assert found.interval(1e11) == found.interval(1e11)
    narrow, wide = (np.log(np.divide(*found.interval(1e12, level=q)[::-1])) for q in (0.5, 0.95))
    assert narrow < wide
    np.testing.assert_allclose(found.interval(1e12, noise=1e-9), found.predict(1e12), rtol=1e-6)


@pytest.mark.parametrize(("law", "scores"), [(LogLaw(), SCORES), (PowerLaw(), LOSSES)])
def test_fits_of_the_bootstrap_are_those_of_l_bfgs(law, scores):
    d, log_y = np.log(DATA / DATA[0]), np.log([noisy(0.01, seed, scores) for seed in range(8)])
    start = fit(law, DATA, scores).theta
    together = law.log_value(_refit(law, d, log_y, start), d)[0]
    alone = [fit(law, DATA, np.exp(y)).log_value(DATA) for y in log_y]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_noise_is_that_of_the_scores():
    found = fit(LogLaw(), np.tile(DATA, 20), np.concatenate([noisy(0.02, seed) for seed in range(20)]))
    assert found.noise == pytest.approx(0.02, rel=0.15)
    assert found.curve.noise == pytest.approx(0.02, rel=0.15)


def test_three_scores_leave_no_interval():
    found = fit(LogLaw(), DATA[:3], SCORES[:3])
    with pytest.raises(ValueError, match="three scores leave nothing to tell noise by"):
        found.interval(1e11)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        fit(LogLaw(), DATA, SCORES).interval(1e11, level=95)


# -- the guide


def test_a_law_that_holds():
    said = diagnose(DATA, SCORES)
    assert (said.status, said.action) == ("improving", "continue")
    assert said.held_out["max"] < 1e-6
    assert "twice the data would bring" in said.reason


def test_a_curve_that_leaves_the_law_but_rises():
    bent = SCORES * np.array([1, 1, 1, 1, 0.97, 0.92, 0.86])
    assert (np.diff(bent) > 0).all()
    said = diagnose(DATA, bent, noise=0.002)
    np.testing.assert_allclose(np.abs(said.held_out["log_errors"]), [0.030, 0.083, 0.151], atol=1e-3)
    assert (said.status, said.action) == ("off_law", "do not extrapolate")


def test_noise_that_explains_a_miss_is_no_reason():
    bent = SCORES * np.array([1, 1, 1, 1, 0.97, 0.92, 0.86])
    assert diagnose(DATA, bent, noise=0.03).status == "improving"


@pytest.mark.parametrize(
    "scores",
    [SCORES[::-1], np.array([20, 24, 27, 25, 22, 20, 19.0]), np.array([20, 15, 21, 16, 20, 14, 19.0])],
)
def test_scores_that_fall_or_fluctuate_are_misaligned(scores):
    said = diagnose(DATA, scores, cross_entropy=LOSSES)
    assert (said.status, said.action) == ("misaligned", "change the data")
    assert any("do not choose data by cross-entropy" in note for note in said.notes)


def test_reasons_tell_changes_of_the_score_itself():
    said = diagnose(DATA, SCORES[::-1])
    assert f"by {100 * (1 - SCORES[0] / SCORES[-1]):.1f} % against the best" in said.reason
    said = diagnose(DATA, LOSSES[::-1], law=PowerLaw())
    assert f"by {100 * (LOSSES[0] / LOSSES[-1] - 1):.1f} % against the best" in said.reason
    ahead = (-2 + 0.35 * math.log(2 * DATA[-1])) ** 1.9
    assert (
        f"twice the data would bring {100 * (ahead / SCORES[-1] - 1):.1f} %" in diagnose(DATA, SCORES).reason
    )


def test_a_flat_curve_is_a_plateau():
    assert diagnose(DATA, noisy(0.003, 8, np.full(7, 30.0))).status == "plateau"
    assert diagnose(DATA, np.full(7, 30.0)).status == "plateau"


def test_too_few_points():
    said = diagnose(DATA[:2], SCORES[:2])
    assert (said.status, said.action, said.fit) == ("insufficient", "measure more", None)
    assert "Nothing was held out" in diagnose(DATA[:4], SCORES[:4]).reason


def test_no_better_than_without_pre_training():
    assert diagnose(DATA, SCORES, baseline=39.0).status == "no_gain"
    assert diagnose(DATA, SCORES, baseline=10.0).status == "improving"
    assert diagnose(DATA, LOSSES, law=PowerLaw(), baseline=1.5).status == "no_gain"


def test_errors_that_fall():
    assert diagnose(DATA, LOSSES, law=PowerLaw()).status == "improving"
    assert diagnose(DATA, LOSSES[::-1], law=PowerLaw()).status == "misaligned"
    assert diagnose(DATA, 1.2 + 50 / DATA**0.5, law=PowerLaw()).status == "plateau"


def test_a_drop_within_the_seeds_scatter_is_none():
    y = np.array([10, 12, 11.8, 13.0])
    assert not trend(y, 0.02)["falls"]
    assert trend(y, 0.001)["falls"]
    assert trend(y, 0.02) == {
        "tau": pytest.approx(2 / 3),
        "drop": pytest.approx(math.log(12 / 11.8)),
        "falls": False,
    }
    assert trend(1 / y, 0.001, rises=False)["drop"] == pytest.approx(math.log(12 / 11.8))


def test_candidates_are_ordered_by_what_is_expected():
    curves = {
        "falls": (DATA, SCORES[::-1]),
        "slow": (DATA, 0.9 * SCORES),
        "fast": (DATA, SCORES),
    }
    found = compare(curves, 3e11)
    assert [one.name for one in found] == ["fast", "slow", "falls"]
    assert found[0].score == pytest.approx((-2 + 0.35 * math.log(3e11)) ** 1.9, rel=1e-5)
    assert found[2].score is None
    with pytest.warns(UserWarning, match="above 80 % of the largest score 50"):
        compare({"fast": (DATA, SCORES)}, 3e11, ceiling=50)
    with pytest.warns(UserWarning, match="above the largest score 40"):
        compare({"fast": (DATA, SCORES)}, 3e11, ceiling=40)
    errors = {"high": (DATA, 2 * LOSSES), "low": (DATA, LOSSES)}
    assert [one.name for one in compare(errors, 3e11, law=PowerLaw())] == ["low", "high"]


@pytest.mark.parametrize(
    ("shares", "score"),
    [({"en": 0.5, "fr": 0.5}, 1.0), ({"en": 1.0}, 0.7), ({"fr": 1.0}, 0.8), ({"de": 1.0}, 0.0)],
)
def test_language_alignment(shares, score):
    assert language_alignment(shares, "en", "fr") == pytest.approx(score)


def test_shares_that_are_none():
    with pytest.raises(ValueError, match="shares must lie in"):
        language_alignment({"en": 0.7, "fr": 0.7}, "en", "fr")


# -- what is refused


@pytest.mark.parametrize(
    ("D", "y", "says"),
    [
        ([1, 2, 3], [1, 2], "two rows of one length"),
        ([1, 2, 0], [1, 2, 3], "every D must be a positive finite number, got 0.0"),
        ([1, 2, 3], [1, -2, 3], "every score must be a positive finite number, got -2.0: a log is taken"),
        ([1, 2, 3], [1, math.nan, 3], "every score must be a positive finite number, got nan"),
        ([1, 2, 2], [1, 2, 3], "needs 3 distinct D, got 2"),
    ],
)
def test_bad_points(D, y, says):
    with pytest.raises(ValueError, match=says):
        Curve.of(D, y)


def test_bad_settings():
    with pytest.raises(ValueError, match="first must lie between 3 and the 7 distinct D, got 8"):
        fit(LogLaw(), DATA, SCORES, first=8)
    with pytest.raises(ValueError, match="first must lie between 3 and the 7 distinct D, got 2"):
        diagnose(DATA, SCORES, first=2)
    with pytest.raises(ValueError, match="delta of the Huber loss must be positive, got 0"):
        PowerLaw(delta=0)
    with pytest.raises(ValueError, match=r"beta_max must be above 0\.01, got 0"):
        LogLaw(beta_max=0)


def test_bad_figures_of_a_metric():
    for baseline in (0, -1, math.nan):
        with pytest.raises(ValueError, match="baseline must be a positive finite number"):
            diagnose(DATA, SCORES, baseline=baseline)
    with pytest.raises(ValueError, match="ceiling must be positive, got 0"):
        compare({"a": (DATA, SCORES)}, 1e11, ceiling=0)


def test_scores_in_the_thousands_that_hardly_rise():
    """exp(v / β) is beyond all floats for the least β."""
    found = fit(LogLaw(), DATA[:5], [1500, 1509, 1513, 1514, 1514.5])
    assert "beta" in found.at_bound
    assert all(map(math.isfinite, found.coefficients.values()))
    assert np.isfinite(list(found.coefficient_intervals().values())).all()


def test_plot(tmp_path):
    plot(
        {"a": (Curve.of(DATA, SCORES), fit(LogLaw(), DATA, SCORES, first=4))}, tmp_path / "a.png", baseline=9
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
