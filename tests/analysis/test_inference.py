"""The statistics against values calculated by hand, and the order of the verdicts."""

import math

import numpy as np
import pytest

from analysis.inference import Difference, Summary, holm, paired, summarize, verdict, welch, wilcoxon


def test_std_divides_by_n_minus_one() -> None:
    assert summarize([1.0, 2.0, 3.0, 4.0]).std == pytest.approx(math.sqrt(5 / 3))


def test_welch_of_two_stds_of_one_and_three_runs_each() -> None:
    # error sqrt(1/3 + 1/3), 4 degrees of freedom: t(0.975) = 2.776445; Student's cumulative distribution with 4 degrees in closed form
    found = welch(Summary(mean=72.0, std=1.0, n=3), Summary(mean=70.0, std=1.0, n=3))
    half, t = 2.776445 * math.sqrt(2 / 3), 2 / math.sqrt(2 / 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-6)
    root = math.sqrt(1 + t**2 / 4)
    assert found.p == pytest.approx(2 * (0.5 - 3 / 8 * t / root * (1 - t**2 / (12 * root**2))))


def test_paired_t_of_three_gains() -> None:
    # mean 2, std 1, error 1/sqrt(3), 2 degrees of freedom: t(0.975) = 4.302653; distribution in closed form
    found = paired([71.0, 73.0, 75.0], [70.0, 71.0, 72.0])
    half, t = 4.302653 / math.sqrt(3), 2 * math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_differences_that_are_equal_but_for_rounding_have_no_test() -> None:
    left, right = (80.1, 80.2, 80.30000000000001), (78.9, 79.0, 79.1)
    assert len({a - b for a, b in zip(left, right, strict=True)}) > 1
    found = paired(left, right)
    assert (found.low, found.high, found.p) == (found.value, found.value, None)
    assert paired(left * 4, right * 4).method == "none: all differences are equal"
    spread = summarize([0.1 + 0.2, 0.3, 0.3]).std
    assert spread != 0
    assert welch(Summary(mean=72.0, std=spread, n=3), Summary(mean=70.0, std=0.0, n=3)).p is None


def test_the_bootstrap_interval_is_close_to_the_normal_one_with_many_pairs() -> None:
    gains = np.random.default_rng(1).normal(1.0, 1.0, 400)
    found = paired(gains.tolist(), [0.0] * 400)
    half = 1.96 * gains.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.02)


def test_holm_multiplies_by_the_tests_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_wilcoxon_of_six_gains_above_zero_is_two_of_sixty_four_sign_patterns_and_fewer_are_not_tested() -> None:
    assert wilcoxon([0.1, 0.5, 0.2, 0.9, 0.4, 0.3]) == pytest.approx(2 / 64)
    assert wilcoxon([0.1, 0.5, 0.2, 0.9, 0.4]) is None
    assert wilcoxon([0.0] * 6) is None
    assert wilcoxon([0.1 + 0.2 - 0.3] * 6) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.5, "reproduced"),  # it excludes 0, too: within half a point comes first
        (-0.5, -0.1, "reproduced"),
        (0.1, 0.51, "above"),
        (-0.51, -0.1, "below"),
        (-0.1, 0.51, "inconclusive"),
        (None, None, ""),
    ],
)
def test_reproduced_comes_first(low: float | None, high: float | None, expected: str) -> None:
    assert verdict(Difference(value=0.3, low=low, high=high, p=None, method="")) == expected
