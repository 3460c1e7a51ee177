"""Statistics of a comparison: pure functions of numbers, the sampling by scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb
from scipy.stats import bootstrap, trim_mean

__all__ = [
    "CONFIDENCE",
    "LIMIT",
    "Interval",
    "expected_best",
    "first_at_or_below",
    "interval",
    "iqm",
    "on_the_clock",
    "profile_score",
    "share_within",
]

Array = NDArray[np.float64]
Statistic = Callable[..., Any]

CONFIDENCE = 0.95
"""Of every interval; rliable's and most papers'."""

RESAMPLES = 9_999
"""Of the bootstrap: scipy's default; an end of an interval is then known to about 0.3 % of its mass."""

LIMIT = 4.0
"""Largest ratio of times that a performance profile looks at: AlgoPerf's (Dahl et al., arXiv 2306.07179)."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile bootstrap interval.

    Attributes:
        value: of the sample.
        low: lower end; NaN where there was too little to resample.
        high: upper end, or NaN.
    """

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    def exp(self) -> Interval:
        """Return the exponential of an interval of logarithms."""
        return Interval(math.exp(self.value), math.exp(self.low), math.exp(self.high))


def iqm(values: ArrayLike, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of what is left when ``floor(n/4)`` values are cut from either end.

    References:
        Agarwal et al., arXiv 2108.13264.
    """
    return trim_mean(values, 0.25, axis=axis)


def interval(strata: Sequence[ArrayLike], statistic: Statistic = np.mean) -> Interval:
    """Stratified percentile bootstrap: every stratum is resampled by itself, then all are pooled.

    With one stratum it is the plain bootstrap. The draws are the same in every call, so the same sample gives
    the same interval. It is NaN if any stratum has a single value: its variation is unknown, and
    ignoring it would make the interval too narrow.

    Args:
        strata: samples, ``[n_i]`` each; here the seeds of a workload.
        statistic: called with the pooled sample and ``axis``.

    Raises:
        ValueError: there is no stratum, one is empty, or a value is not finite.
    """
    samples = [np.asarray(stratum, dtype=float) for stratum in strata]
    if not samples or not all(s.ndim == 1 and s.size for s in samples):
        raise ValueError(f"strata must be samples of one value at least, got {[s.shape for s in samples]}")
    if not all(np.isfinite(s).all() for s in samples):
        raise ValueError("strata must be finite")
    value = float(statistic(np.concatenate(samples), axis=0))
    if min(s.size for s in samples) < 2:
        return Interval(value, math.nan, math.nan)

    def pooled(*parts: Array, axis: int) -> Any:
        return statistic(np.concatenate(parts, axis=axis), axis=axis)

    ends = bootstrap(
        samples,
        pooled,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high))


def expected_best(values: ArrayLike) -> Array:
    """Expected least of j out of n values drawn without replacement, ``[n]`` for j = 1 … n, exactly.

    ``E_j = Σ_i x_(i) C(n − i, j − 1) / C(n, j)`` over the order statistics x_(1) ≤ … ≤ x_(n): of all subsets
    of j, those whose least is x_(i) choose their other j − 1 from the n − i above it. The order in which
    trials ran plays no part.

    Raises:
        ValueError: there is no value.
    """
    ordered = np.sort(np.asarray(values, dtype=float).ravel())
    n = len(ordered)
    if not n:
        raise ValueError("values must hold one at least")
    i, j = np.arange(1, n + 1)[None, :], np.arange(1, n + 1)[:, None]
    return (comb(n - i, j - 1) / comb(n, j)) @ ordered


def first_at_or_below(curve: Sequence[Sequence[float]], target: float) -> float:
    """First step at which a curve of ``(step, loss)`` is at or below a target; infinity if none is."""
    return next((float(step) for step, loss in curve if loss <= target), math.inf)


def on_the_clock(times: ArrayLike, cost: float) -> float:
    """Expected time to a target when the search is on the clock: runs in random order until one hits.

    ``(n − m)/(m + 1) · cost + mean of the m times that hit``: n − m misses fall into the m + 1 gaps between
    hits alike, and a miss costs a whole run. Infinity if none hits.

    Args:
        times: time to the target of each run of the search, ``[n]``; infinity where it missed.
        cost: of a whole run, in the same unit.
    """
    times = np.asarray(times, dtype=float)
    hits = times[np.isfinite(times)]
    if not hits.size:
        return math.inf
    return float((times.size - hits.size) / (hits.size + 1) * cost + hits.mean())


def share_within(ratios: ArrayLike, taus: ArrayLike) -> Array:
    """Performance profile: the share of ratios that are at most τ, ``[n_taus]``.

    References:
        Dolan and Moré, arXiv cs/0102001.
    """
    ratios = np.sort(np.asarray(ratios, dtype=float).ravel())
    return np.searchsorted(ratios, np.asarray(taus, dtype=float), side="right") / len(ratios)


def profile_score(ratios: ArrayLike, limit: float = LIMIT) -> float:
    """Area under a performance profile from 1 to a limit over its largest, 1: AlgoPerf's score.

    ``∫_1^L share(τ) dτ / (L − 1)``, which is the mean over ratios of ``max(0, L − max(1, ratio))/(L − 1)``.

    References:
        Dahl et al., arXiv 2306.07179, section 4.4.
    """
    left = np.clip(limit - np.asarray(ratios, dtype=float), 0.0, limit - 1)
    return float(left.mean() / (limit - 1))
