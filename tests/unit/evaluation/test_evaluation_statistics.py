"""Intervals cover what they should, and are what analysis of variance and t tables say."""

import math

import numpy as np
import pytest

from konomi.evaluation.statistics import difference, estimate, interval, student_quantile

T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 8: 2.306, 15: 2.131, 30: 2.042}


def as_scores(table):
    return {place: float(value) for place, value in np.ndenumerate(np.asarray(table))}


@pytest.mark.parametrize("degrees, expected", T_TABLE.items())
def test_quantiles_are_those_of_the_t_table(degrees, expected):
    assert student_quantile(degrees) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("degrees", [1.3, 1.8, 2.5, 3.7, 6.4, 40.5])
def test_quantiles_between_whole_degrees(degrees):
    """The density integrated up to the quantile is 0.975."""
    grid = np.linspace(0, student_quantile(degrees), 200_001)
    constant = math.gamma((degrees + 1) / 2) / (
        math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
    )
    density = constant * (1 + grid**2 / degrees) ** (-(degrees + 1) / 2)
    assert 0.5 + np.trapezoid(density, grid) == pytest.approx(0.975, abs=1e-3)


@pytest.mark.parametrize("of_prompts, of_seeds", [(1.0, 0.5), (1.0, 0.0), (0.0, 0.0), (0.3, 1.0)])
def test_intervals_cover_what_they_should(of_prompts, of_seeds):
    """Of tables with such effects; `python -m bench.evaluation` looks longer and at more."""
    drawn = np.random.default_rng(1)
    tries, inside = 600, 0
    for _ in range(tries):
        table = (
            of_prompts * drawn.normal(size=(6, 1))
            + of_seeds * drawn.normal(size=(1, 4))
            + drawn.normal(size=(6, 4))
        )
        found = interval(as_scores(table + 3), resamples=200)
        inside += found.low <= 3 <= found.high
    # Three standard deviations of 600 tries are 2.7 %.
    assert 0.92 <= inside / tries <= 0.985


def test_where_seeds_have_no_effect_it_is_the_t_interval_over_prompts():
    table = np.outer([1.0, 2.0, 4.0, 9.0], [1.0, 1.0, 1.0]) + np.array([0.1, -0.1, 0.0])
    table[0] += [0.1, -0.2, 0.1]
    found = interval(as_scores(table))
    means = table.mean(1)
    assert found.mean == pytest.approx(means.mean())
    # The seeds' own variance is a hundredth of the prompts', so it hardly adds.
    assert found.error == pytest.approx(means.std(ddof=1) / 2, rel=0.02)
    assert found.high - found.low == pytest.approx(2 * 3.182 * found.error, rel=0.12)
    assert found.high - found.mean > found.mean - found.low


def test_one_prompt_or_one_seed():
    values = [1.0, 2.0, 4.0, 5.0]
    for scores in (as_scores([values]), as_scores([[v] for v in values])):
        found = interval(scores)
        assert found.error == pytest.approx(np.std(values, ddof=1) / 2)
        assert found.low < 3 < found.high and found.count == 4
    alone = interval({(0, 0): 2.5})
    assert (alone.low, alone.mean, alone.high, alone.count) == (2.5, 2.5, 2.5, 1)


def test_a_pair_is_compared_picture_by_picture():
    """Both share large effects of prompts, which say nothing about which of them is better."""
    drawn = np.random.default_rng(0)
    base = 5 * drawn.normal(size=(5, 1)) + drawn.normal(size=(5, 4))
    ours = base + 1 + 0.1 * drawn.normal(size=(5, 4))
    found = estimate(as_scores(ours), as_scores(base))
    assert found.base == pytest.approx(base.mean())
    mean, low, high = found.difference
    assert mean == pytest.approx((ours - base).mean())
    assert 0.8 < low < 1 < high < 1.2
    assert found.low < found.base, "alone, neither is told from the other"


def test_absent_and_broken_values_are_left_out():
    table = np.arange(12.0).reshape(3, 4)
    scores = as_scores(table)
    whole = interval(scores)
    del scores[1, 2]
    scores[1, 3] = math.nan
    found = interval(scores)
    assert found.count == 10
    assert found.mean == pytest.approx(np.mean([v for v in scores.values() if v == v]))
    assert found.error == pytest.approx(whole.error, rel=0.3)
    assert difference(scores, {(0, 0): 1.0, (9, 9): 1.0}).count == 1
    assert estimate(scores, {(9, 9): 1.0}).difference is None
    with pytest.raises(ValueError, match="no scores"):
        interval({(0, 0): math.inf})


def test_the_same_seed_gives_the_same_interval():
    scores = as_scores(np.random.default_rng(0).normal(size=(4, 4)))
    assert interval(scores) == interval(scores)
    assert interval(scores, seed=1) != interval(scores)


def test_no_interval_reaches_beyond_what_a_score_can_be():
    scores = {(0, 0): 0.0, (0, 1): 0.02, (1, 0): 0.5, (1, 1): 0.55}
    wide = estimate(scores, dict.fromkeys(scores, 0.0))
    found = estimate(scores, dict.fromkeys(scores, 0.0), bounds=(0.0, 2.0))
    assert wide.low < 0 and wide.high > 2 and (found.low, found.high) == (0.0, 2.0)
    assert found.difference[1:] == (max(wide.difference[1], -2.0), min(wide.difference[2], 2.0))
    assert found.mean == wide.mean
