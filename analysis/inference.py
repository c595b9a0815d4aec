"""Every statistic of the tables, in one place: intervals and tests from scipy and statsmodels; a std is the sample's (ddof=1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

BOOTSTRAP_FROM = 10  # fewer pairs: a t-interval, since a bootstrap of few values is too narrow
BOOTSTRAP_RESAMPLES = 9999
EQUAL_POINTS = 1e-9  # less is rounding: accuracies are multiples of 1 / test images
EQUIVALENCE_POINTS = 0.5
LEVEL = 0.95  # of intervals
WILCOXON_FROM = 6  # fewer pairs have no two-sided p below 0.05 (of 5: 2 / 2^5)


def p_text(p: float | None) -> str:
    """Return a p-value as tables show it."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Mean, sample standard deviation (None with fewer than two values) and number of values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference of means with its 95 % interval and two-sided p-value (None where they can't be had); `n` pairs, None if unpaired."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    method: str
    n: int | None = None


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, std (ddof=1) and n of `values` (one or more)."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise ValueError("values is empty; accepted: one or more numbers")
    std = float(numbers.std(ddof=1)) if numbers.size > 1 else None
    return Summary(mean=float(numbers.mean()), std=std, n=int(numbers.size))


def welch(measured: Summary, published: Summary) -> Difference:
    """Return measured minus published with Welch's interval and test, from means, stds and counts alone."""
    value = measured.mean - published.mean
    if measured.std is None or published.std is None or min(measured.n, published.n) < 2:
        return Difference(value=value, low=None, high=None, p=None, method="none: a std is missing")
    left, right = measured.std**2 / measured.n, published.std**2 / published.n
    error = math.sqrt(left + right)
    if error < EQUAL_POINTS:
        return Difference(value=value, low=value, high=value, p=None, method="none: both stds are 0")
    freedom = (left + right) ** 2 / (left**2 / (measured.n - 1) + right**2 / (published.n - 1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Difference(value=value, low=value - half, high=value + half, p=p, method="Welch")


def paired(left: Sequence[float], right: Sequence[float]) -> Difference:
    """Return the mean of left - right over pairs: a t-interval below `BOOTSTRAP_FROM` pairs, a BCa bootstrap from there."""
    gains = np.asarray([a - b for a, b in zip(left, right, strict=True)], dtype=np.float64)
    if gains.size == 0:
        raise ValueError("left and right are empty; accepted: one or more pairs")
    value = float(gains.mean())
    if gains.size < 2:
        return Difference(value=value, low=None, high=None, p=None, method="none: one pair", n=1)
    n = int(gains.size)
    if np.ptp(gains) < EQUAL_POINTS:
        return Difference(value=value, low=value, high=value, p=None, method="none: all differences are equal", n=n)
    test = stats.ttest_1samp(gains, 0.0)
    if gains.size < BOOTSTRAP_FROM:
        interval = test.confidence_interval(LEVEL)
        return Difference(value=value, low=float(interval.low), high=float(interval.high), p=float(test.pvalue), method="paired t", n=n)
    resampled = stats.bootstrap((gains,), np.mean, confidence_level=LEVEL, n_resamples=BOOTSTRAP_RESAMPLES, rng=np.random.default_rng(0))
    low, high = (float(end) for end in resampled.confidence_interval)
    return Difference(value=value, low=low, high=high, p=float(test.pvalue), method="paired bootstrap, t-test", n=n)


def wilcoxon(gains: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Wilcoxon's signed-rank test over pairs of networks; None for few pairs or no non-zero gain."""
    numbers = np.asarray(gains, dtype=np.float64)
    numbers = (
        np.round(numbers / EQUAL_POINTS) * EQUAL_POINTS
    )  # so that gains which are equal but for rounding tie, and cancelled ones are 0
    if numbers.size < WILCOXON_FROM or not np.any(numbers):
        return None
    return float(stats.wilcoxon(numbers).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm-corrected p-values; None stays None and does not count."""
    known = [p for p in p_values if p is not None]
    if not known:
        return [None] * len(p_values)
    corrected = iter(float(p) for p in multipletests(known, method="holm")[1])
    return [None if p is None else next(corrected) for p in p_values]


def verdict(difference: Difference) -> str:
    """Return "reproduced" (95 % interval within ±0.5 points), "above", "below" (it excludes 0), "inconclusive", or "" without interval."""
    if difference.low is None or difference.high is None:
        return ""
    if difference.low >= -EQUIVALENCE_POINTS and difference.high <= EQUIVALENCE_POINTS:
        return "reproduced"
    if difference.low > 0:
        return "above"
    return "below" if difference.high < 0 else "inconclusive"
