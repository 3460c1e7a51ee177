"""Statistics of a comparison against closed forms, brute force and rliable."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from thermoopt.benchmarks.report.stats import (
    CONFIDENCE,
    Interval,
    expected_best,
    first_at_or_below,
    interval,
    iqm,
    on_the_clock,
    profile_score,
    share_within,
)


def test_iqm_leaves_out_a_quarter_at_either_end():
    values = np.array([900.0, 1, 2, 3, 4, -900, 5, 6])
    assert iqm(values) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm(np.stack([values, values + 1]), axis=1) == pytest.approx([3.5, 4.5])
    assert iqm([1.0, 2, 6]) == pytest.approx(3)  # a quarter of three is none


def test_expected_best_is_the_mean_over_all_subsets():
    values = np.random.default_rng(0).normal(size=6)
    got = expected_best(values)
    for j in range(1, 7):
        subsets = [min(s) for s in itertools.combinations(values, j)]
        assert got[j - 1] == pytest.approx(np.mean(subsets), rel=1e-12)
    assert got[0] == pytest.approx(values.mean())
    assert got[-1] == values.min()


def test_expected_best_does_not_depend_on_the_order_of_running():
    values = [5.0, 1, 4, 2, 3]
    for order in itertools.islice(itertools.permutations(values), 20):
        assert (expected_best(order) == expected_best(values)).all()
    # of the numbers 1 to n: (n + 1)/(j + 1)
    assert expected_best(values) == pytest.approx([6 / (j + 1) for j in range(1, 6)])


@pytest.mark.parametrize("misses", [0, 1, 3])
@pytest.mark.parametrize("hits", [(7.0,), (7.0, 30.0, 11.0)])
def test_clock_is_the_mean_over_all_orders(misses, hits):
    cost = 50.0
    times = [*hits, *[math.inf] * misses]
    spent = []
    for order in itertools.permutations(times):
        first = next(i for i, t in enumerate(order) if math.isfinite(t))
        spent.append(first * cost + order[first])
    assert on_the_clock(times, cost) == pytest.approx(np.mean(spent))


def test_clock_without_a_hit_never_ends():
    assert on_the_clock([math.inf] * 3, 50) == math.inf


def test_first_step_at_or_below_a_target():
    curve = [[0, 3.0], [10, 1.0], [20, 2.0], [30, 0.5]]
    assert first_at_or_below(curve, 1.0) == 10
    assert first_at_or_below(curve, 0.9) == 30
    assert first_at_or_below([[0, math.nan], [10, 1.0]], 1.0) == 10
    assert first_at_or_below(curve, 0.4) == math.inf


def test_profile_and_its_area():
    ratios = [1.0, 2.0, 3.5, math.inf]
    assert share_within(ratios, [0.99, 1, 1.99, 2, 4]).tolist() == [0, 0.25, 0.25, 0.5, 0.75]
    assert profile_score(ratios) == pytest.approx((3 + 2 + 0.5 + 0) / 3 / 4)
    taus = np.linspace(1, 4, 300_001)
    assert profile_score(ratios) == pytest.approx(
        np.trapezoid(share_within(ratios, taus), taus) / 3, abs=1e-5
    )
    assert profile_score([0.5, 1.0]) == 1
    assert profile_score([4.0, math.inf]) == 0


def test_interval_of_two_values_is_known():
    """Means of resamples of {0, 1} are 0, 1/2, 1 with weights 1/4, 1/2, 1/4."""
    assert interval([[0.0, 1.0]]) == Interval(0.5, 0.0, 1.0)


def test_interval_of_three_seeds_is_their_range():
    """A resample is all of one value with probability 1/27 = 3.7 %, above the 2.5 % beyond either end."""
    got = interval([[0.2, 0.9, 0.4]])
    assert (got.value, got.low, got.high) == pytest.approx((0.5, 0.2, 0.9))


def test_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    got = interval([values])
    half = 1.96 * values.std() / 20
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == (
        pytest.approx(got.value - half, abs=0.03),
        pytest.approx(got.value + half, abs=0.03),
    )


def test_strata_are_resampled_by_themselves():
    """Between strata lie 100; stratified, the interval knows only of the 1 within them."""
    strata = [[0.0, 1.0, 0, 1], [100.0, 101.0, 100, 101]]
    got, mixed = interval(strata), interval([np.concatenate(strata)])
    assert got.value == mixed.value == 50.5
    # the mean of eight fair coins: 1 of 256 below 1/8 and 9 of 256 below 2/8
    assert (got.low, got.high) == (50.125, 50.875)
    assert mixed.high - mixed.low > 50


def test_one_value_has_no_interval():
    for strata in ([[1.0]], [[1.0, 2.0], [3.0]]):
        got = interval(strata)
        assert not got.known
        assert got.value == np.mean(np.concatenate(strata))


def test_same_sample_same_interval_whatever_ran_before():
    first = interval([[1.0, 2, 4]], iqm)
    np.random.default_rng().normal()
    interval([[5.0, 6, 9, 7]])
    assert interval([[1.0, 2, 4]], iqm) == first


def test_exponential_of_an_interval():
    assert Interval(0, -1, 1).exp() == Interval(1, math.exp(-1), math.e)


@pytest.mark.parametrize("strata", [[], [[]], [[1.0], []], [[1.0, math.nan]], [[math.inf, 1.0]]])
def test_what_cannot_be_resampled(strata):
    with pytest.raises(ValueError, match="strata must be"):
        interval(strata)


def test_expected_best_of_nothing():
    with pytest.raises(ValueError, match="one at least"):
        expected_best([])


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_rliable(monkeypatch):
    """IQM, its stratified bootstrap interval and the performance profile of scores [5 runs, 8 tasks].

    Run with rliable 1.2.0 and arch 8.0.0, which calls by another name what rliable seeds it with.
    """
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    bootstrap = pytest.importorskip("arch.bootstrap").IIDBootstrap
    init = bootstrap.__init__
    monkeypatch.setattr(
        bootstrap,
        "__init__",
        lambda self, *args, random_state=None, **kw: init(self, *args, seed=random_state, **kw),
    )
    rng = np.random.default_rng(3)
    scores = np.exp(rng.normal(0, 0.3, size=(5, 8)) + rng.normal(0, 1, size=8))
    points, ends = library.get_interval_estimates(
        {"a": scores},
        lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x)]),
        reps=5_000,
        confidence_interval_size=CONFIDENCE,
        random_state=np.random.RandomState(0),
    )
    for i, statistic in enumerate((iqm, np.mean)):
        got = interval(list(scores.T), statistic)
        assert got.value == pytest.approx(points["a"][i], rel=1e-12)
        width = ends["a"][1, i] - ends["a"][0, i]
        assert got.low == pytest.approx(ends["a"][0, i], abs=0.05 * width)  # chance: 0.01
        assert got.high == pytest.approx(ends["a"][1, i], abs=0.05 * width)
    taus = np.linspace(0, 4, 41)
    above = np.array([library.run_score_deviation(scores, tau) for tau in taus])
    assert share_within(scores, taus) == pytest.approx(1 - above)
