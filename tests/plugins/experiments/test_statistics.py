"""Verdicts keep their error rate, however often the results are looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.experiments.statistics import (
    ALPHA,
    FEWEST,
    UNUSUAL,
    Moments,
    difference,
    interval,
    mismatch,
    verdict,
)

Floats = NDArray[np.float64]
RUNS, LOOKS, NEW = 120, 25, 40
"""Simulated experiments, looks at each, and new units per variant and look."""


def moments(x: Floats, n: Floats, share: bool = False) -> Moments:
    used = n > 0
    return Moments(int(used.sum()), x.sum(), n.sum(), (x * x).sum(), (x * n).sum(), (n * n).sum(), share)


def simulated(seed: int, rate: float, calls: float, runs: int) -> Iterator[tuple[Floats, Floats]]:
    """For each look, failed calls and calls per unit, each with its own failure rate: shape (runs, units so far)."""
    chance = np.random.default_rng(seed)
    units = LOOKS * NEW
    fails = chance.beta(rate * 3, (1 - rate) * 3, (runs, units))
    eager = chance.gamma(1.0, 1.0, (runs, units))
    x, n = np.zeros((runs, units)), np.zeros((runs, units))
    for look in range(1, LOOKS + 1):
        upto = look * NEW
        more = chance.poisson(calls * eager[:, :upto])
        n[:, :upto] += more
        x[:, :upto] += chance.binomial(more, fails[:, :upto])
        yield x[:, :upto], n[:, :upto]


def find_rates(control: float, other: float, calls: float, runs: int = RUNS) -> tuple[float, float, float]:
    """The shares of experiments with a difference at any look, with one at the last look, and with one at any look if
    naive intervals were used."""
    ever, last, naive = np.zeros(runs, bool), np.zeros(runs, bool), np.zeros(runs, bool)
    for (x, n), (more_x, more_n) in zip(
        simulated(1, control, calls, runs), simulated(2, other, calls, runs), strict=True
    ):
        for run in range(runs):
            mine, theirs = moments(x[run], n[run], True), moments(more_x[run], more_n[run], True)
            seen = difference(mine, theirs, 1)
            last[run] = seen is not None and not seen[0] <= 0 <= seen[1]
            if seen is not None:
                error = ((mine.variance or 0) + (theirs.variance or 0)) ** 0.5
                naive[run] |= abs(sum(seen) / 2) > 1.96 * error
        ever |= last
    return float(ever.mean()), float(last.mean()), float(naive.mean())


def test_repeated_looks_keep_the_false_positive_rate() -> None:
    ever, _, naive = find_rates(0.2, 0.2, calls=0.5)
    assert ever <= ALPHA
    assert naive > 2 * ALPHA, "naive intervals must raise false alarms, or the simulation proves nothing"


def test_constant_units_with_growing_calls_keep_the_false_positive_rate() -> None:
    """A few hundred users make ever more calls: looks are counted by calls, not by users."""
    chance, alarms = np.random.default_rng(5), 0
    for _ in range(RUNS):
        x, n = np.zeros((2, 150)), np.zeros((2, 150))
        alarmed = False
        for _ in range(25):
            more = chance.poisson(8, (2, 150))
            n += more
            x += chance.binomial(more, 0.1)
            seen = difference(moments(x[0], n[0], True), moments(x[1], n[1], True), 1)
            alarmed |= seen is not None and not seen[0] <= 0 <= seen[1]
        alarms += alarmed
    assert alarms <= ALPHA * RUNS


@pytest.mark.parametrize("larger", [(9, 1), (1, 9)])
@pytest.mark.parametrize("kind", ["rare", "skewed"])
def test_rare_metrics_with_unequal_groups_keep_the_false_positive_rate(kind: str, larger: tuple[int, int]) -> None:
    """A callers' metric with nine times as many units in one variant: the other may have no events yet."""
    chance, alarms = np.random.default_rng(6), 0

    def values(units: int) -> Floats:
        rare: Floats = (chance.random(units) < 0.005).astype(np.float64)
        return rare if kind == "rare" else chance.lognormal(0, 2.5, units)

    for _ in range(RUNS):
        both, alarmed = [values(one * 1000) for one in larger], False
        for look in range(1, 11):
            control, other = [one[: one.size * look // 10] for one in both]
            seen = difference(moments(control, np.ones_like(control)), moments(other, np.ones_like(other)), 1)
            alarmed |= seen is not None and not seen[0] <= 0 <= seen[1]
        alarms += alarmed
    assert alarms <= ALPHA * RUNS


def test_a_real_difference_is_found() -> None:
    ever, last, _ = find_rates(0.2, 0.3, calls=1, runs=40)
    assert ever >= last > 0.9


def test_the_delta_methods_variance_matches_a_bootstrap() -> None:
    chance = np.random.default_rng(3)
    n = chance.poisson(3, 2000).astype(float)
    x = chance.gamma(2, 0.5, 2000) * n
    drawn = chance.integers(0, 2000, (1000, 2000))
    means = x[drawn].sum(1) / n[drawn].sum(1)
    variance = moments(x, n).variance
    assert variance == pytest.approx(means.var(), rel=0.15)
    independent = moments(x, n).n
    each = np.repeat(x / np.maximum(n, 1), n.astype(int))
    assert variance is not None and variance > 1.5 * each.var() / independent, "calls of a unit are correlated"


@pytest.mark.parametrize(("share", "least", "most"), [(0.5, 0.0, 0.01), (0.6, 0.99, 1.0)])
def test_a_sample_ratio_mismatch_is_detected(share: float, least: float, most: float) -> None:
    chance, flagged = np.random.default_rng(4), 0
    for _ in range(RUNS):
        ones = np.cumsum(chance.binomial(50, share, 40))
        flagged += any(mismatch([int(one), 50 * look - int(one)], [1, 1]) < UNUSUAL for look, one in enumerate(ones, 1))
    assert least <= flagged / RUNS <= most


def test_unequal_weights_are_not_a_sample_ratio_mismatch() -> None:
    assert mismatch([9000, 900, 100], [90, 9, 1]) == 1.0
    assert mismatch([0, 0], [1, 1]) == 1.0
    assert mismatch([9000, 1000], [1, 1]) < 1e-100


def test_there_is_no_verdict_for_few_units() -> None:
    few = Moments(FEWEST - 1, 50, 99, 50, 50, 99, True)
    many = Moments(FEWEST, 50, 100, 50, 50, 100, True)
    assert interval(few) is None and difference(few, many, 1) is None and interval(many) is not None
    assert verdict(difference(few, many, 1), False, "lower") == "too few units yet"
    assert interval(Moments()) is None and Moments().mean is None and Moments().variance is None


def test_no_event_in_many_units_still_has_an_interval() -> None:
    """Proportions have a variance even if all units are equal; other metrics without variation have no verdict."""
    none, all_of = Moments(200, 0, 200, 0, 0, 200, True), Moments(200, 200, 200, 200, 200, 200, True)
    seen = difference(none, all_of, 1)
    assert seen is not None and 0.8 < seen[0] < 1 < seen[1]
    constant = Moments(200, 1400, 200, 9800, 1400, 200)
    assert constant.variance is None and difference(constant, constant, 1) is None


@pytest.mark.parametrize(
    ("seen", "sense", "told"),
    [
        ((0.1, 0.2), "lower", "worse"),
        ((-0.2, -0.1), "lower", "better"),
        ((0.1, 0.2), "higher", "better"),
        ((-0.2, -0.1), "higher", "worse"),
        ((0.1, 0.2), None, "higher"),
        ((-0.2, -0.1), None, "lower"),
        ((-0.1, 0.2), "lower", "no difference seen yet"),
        (None, "lower", "no difference seen yet"),
    ],
)
def test_verdicts(seen: tuple[float, float] | None, sense: str | None, told: str) -> None:
    assert verdict(seen, True, sense) == told  # type: ignore[arg-type]


def test_more_comparisons_widen_the_intervals() -> None:
    mine, theirs = Moments(500, 100, 500, 100, 100, 500, True), Moments(500, 150, 500, 150, 150, 500, True)
    one, many = difference(mine, theirs, 1), difference(mine, theirs, 9)
    assert one is not None and many is not None and many[0] < one[0] < one[1] < many[1]
