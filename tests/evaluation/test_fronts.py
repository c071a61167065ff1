"""Interpolation in log L0, fronts and the area between them, by hand; intervals against scipy."""

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from sae_lightning.evaluation.fronts import at, common_range, front, joined, mean_over, paired

RISING = [(4.0, 0.5), (16.0, 0.9)]
POINTS = st.lists(st.tuples(st.floats(0.5, 500), st.floats(-1, 1)), min_size=1, max_size=8)


def pieces(curve):
    return list(itertools.pairwise(curve))


def test_between_two_points_the_score_is_on_a_line_in_log_l0():
    assert at(RISING, 8) == pytest.approx(0.7)  # log(8/4) is half of log(16/4): 0.5 + 0.4/2
    assert at(RISING, 4 * 4**0.25) == pytest.approx(0.6)  # a quarter of it
    assert (at(RISING, 4), at(RISING, 16)) == (0.5, 0.9)


def test_nothing_is_extrapolated():
    assert math.isnan(at(RISING, 3.999)) and math.isnan(at(RISING, 16.001)) and math.isnan(at([], 8))
    assert at([(8.0, 0.3)], 8) == 0.3 and math.isnan(at([(8.0, 0.3)], 8.1))


def test_the_neighbours_are_those_in_l0_whatever_the_order_and_the_scores():
    curve = [(16.0, 0.9), (4.0, 0.5), (8.0, 0.3)]  # a knob that is not monotone, and a score that falls
    assert at(curve, 8) == 0.3
    assert at(curve, math.sqrt(32)) == pytest.approx(0.4)  # halfway from 4 to 8: (0.5 + 0.3)/2
    assert at([*RISING, (4.0, 0.7)], 8) == pytest.approx(0.75)  # two at L0 4 count as one of 0.6: (0.6 + 0.9)/2


def test_the_front_is_what_nothing_dominates_and_flat_behind():
    curve = [(32.0, 0.8), (8.0, 0.45), (4.0, 0.5), (16.0, 0.9), (4.0, 0.4)]
    assert front(curve) == [(4, 0.5), (16, 0.9), (32, 0.9)]
    assert at(front(curve), 8) == pytest.approx(0.7)  # not the dominated 0.45
    assert front([(4.0, 0.5), (8.0, 0.6), (16.0, 0.2), (32.0, 0.4)], is_less_better=True) == [(4, 0.5), (16, 0.2), (32, 0.2)]
    assert front([]) == []


@given(POINTS)
def test_no_point_is_above_the_front(curve):
    envelope = front(curve)
    for l0, score in curve:
        assert math.isnan(at(envelope, l0)) or at(envelope, l0) >= score - 1e-12
    scores = [score for _, score in envelope]
    assert scores == sorted(scores) and envelope[-1][0] == max(l0 for l0, _ in curve)


def test_the_area_between_two_fronts():
    ours, theirs = pieces(RISING), pieces([(2.0, 0.6), (8.0, 0.6)])
    assert common_range([ours, theirs]) == (4, 8)
    # From 4 to 8 ours rises from 0.5 to 0.7: 0.6 in the mean over log L0. Theirs is 0.6 all along.
    assert mean_over(ours, 4, 8) - mean_over(theirs, 4, 8) == pytest.approx(0)
    assert mean_over(ours, 4, 16) == pytest.approx(0.7)  # (0.5 + 0.9)/2
    bent = pieces([(1.0, 0.0), (2.0, 0.4), (8.0, 0.8)])
    # Over three octaves: one at (0 + 0.4)/2, two at (0.4 + 0.8)/2: (0.2 + 2 · 0.6)/3.
    assert mean_over(bent, 1, 8) == pytest.approx(1.4 / 3)


def test_an_area_beyond_the_front_is_none():
    assert math.isnan(mean_over(pieces(RISING), 3, 8)) and math.isnan(mean_over(pieces(RISING), 8, 17))
    assert common_range([pieces(RISING), pieces([(16.0, 0.1), (32.0, 0.2)])]) is None
    assert common_range([pieces(RISING), []]) is None and common_range([]) is None
    with pytest.raises(ValueError, match="from more than 0"):
        mean_over(pieces(RISING), 8, 8)


def test_fronts_of_rates_are_joined_where_the_choice_changes():
    curves = {"low": {0: [(1.0, 0.0), (4.0, 0.4)]}, "high": {0: [(2.0, 0.5), (8.0, 0.9)]}}
    found = joined(curves, lambda l0: "low" if l0 < 2 else "high")
    # low from 1 to 2, where it is 0.2; high from 2 to 4, where it is 0.7, and from there to 8.
    assert found == {0: [((1, 0), (2, pytest.approx(0.2))), ((2, 0.5), (4, pytest.approx(0.7))), ((4, pytest.approx(0.7)), (8, 0.9))]}
    assert mean_over(found[0], 1, 8) == pytest.approx((0.1 + 0.6 + 0.8) / 3)
    gap = joined(curves, lambda l0: None if 2 < l0 < 4 else "low" if l0 < 2 else "high")
    assert gap == {0: [((1, 0), (2, pytest.approx(0.2)))]}  # as long as what is right of the gap, and before it


def test_an_interval_is_students():
    found = paired([1.0, 2.0, 3.0, 4.0])
    # deviation √(5/3), over √4: 0.6455; t of 3 degrees of freedom at 0.975: 3.1824
    assert found.mean == 2.5 and found.standard_error == pytest.approx(0.645497, abs=1e-6)
    assert (found.low, found.high, found.n) == (pytest.approx(2.5 - 2.05426, abs=1e-5), pytest.approx(2.5 + 2.05426, abs=1e-5), 4)
    interval = ttest_1samp([1.0, 2.0, 3.0, 4.0], 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_one_pair_has_no_interval_and_none_is_none():
    one = paired([0.25])
    assert (one.mean, one.n) == (0.25, 1)
    assert all(math.isnan(value) for value in (one.standard_error, one.low, one.high))
    assert paired([]) is None
    assert paired([0.5, 0.5])[:4] == (0.5, 0, 0.5, 0.5)


def test_intervals_hold_what_they_are_of_as_often_as_they_say():
    draw = statistics.NormalDist(0.3, 2.0).samples(5 * 2000, seed=0)
    found = [paired(draw[5 * i : 5 * i + 5]) for i in range(2000)]
    share = statistics.fmean(one.low < 0.3 < one.high for one in found)
    assert 0.935 < share < 0.965  # three standard errors of a share of 0.95 in 2000
