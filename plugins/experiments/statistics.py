"""Which conclusions the results allow, valid at any time and however often somebody looks.

All metrics are ratios of sums over units.  The calls of one unit are correlated; treating them as independent would
make the intervals far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt
from typing import Final, Literal, TypeAlias

from plugins.experiments.definition import Sense

ALPHA: Final = 0.05
"""Maximum probability of reporting a difference between variants that do not differ."""
UNUSUAL: Final = 0.01
"""p-values below this mean that the split does not match the weights (sample ratio mismatch)."""
FEWEST: Final = 100
"""Minimum number of units of each variant: the rules are asymptotic."""
TIGHTEST: Final = 5000
"""Number of observations at which intervals are tightest; fixed in advance, independent of the data."""
FIRM: Final = 500.0
"""Concentration of the Dirichlet prior around the set shares, in units: how close a wrong split is expected to be."""
Verdict: TypeAlias = Literal["better", "worse", "higher", "lower", "no difference seen yet", "too few units yet"]
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Moments:
    """The number of units, and sums over them of a numerator x, a denominator n, their squares and their product.

    share: whether x counts a subset of what n counts.
    """

    units: int = 0
    x: float = 0.0
    n: float = 0.0
    xx: float = 0.0
    xn: float = 0.0
    nn: float = 0.0
    share: bool = False

    @property
    def mean(self) -> float | None:
        return self.x / self.n if self.n else None

    @property
    def variance(self) -> float | None:
        """Of the mean, by the delta method; None if the units do not differ, from which nothing can be concluded.

        Source: Deng, Knoblich, Lu, Applying the Delta Method in Metric Analytics, KDD 2018.  A share has at least the
        variance of independent calls with two more of either kind (Agresti, Coull 1998), so that 0 of 100 is not
        taken for "never".
        """
        if self.units < 2 or not self.n:
            return None
        mean = self.x / self.n
        squares = max(self.xx - 2 * mean * self.xn + mean * mean * self.nn, 0.0)
        if self.share:
            near = (self.x + 2) / (self.n + 4)
            squares = max(squares, self.n * near * (1 - near))
        if squares <= 1e-12 * self.xx:  # only rounding errors
            return None
        return squares / (self.n * self.n) * self.units / (self.units - 1)

    @property
    def spread(self) -> float:
        """The variance per unit of n; 0 if unknown."""
        return (self.variance or 0.0) * self.n


def widening(observations: float, alpha: float) -> float:
    """The half-width of an interval in standard errors, valid at all times simultaneously with probability 1 - alpha.

    The closed form of an asymptotic confidence sequence: a Gaussian mixture over the drifts of a Brownian motion.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory and asymptotic confidence
    sequences, Annals of Statistics 52 (2024).  Time is counted in calls, errors are those of units: if the calls of a
    unit are correlated, sums at two times are correlated more than those of independent calls, and by Slepian's lemma
    cross the same boundary no more often.
    """
    rho = (-2 * log(alpha) + log(-2 * log(alpha) + 1)) / TIGHTEST
    grown = observations * rho + 1
    return sqrt(grown / (grown - 1) * (log(grown) - 2 * log(alpha)))


def interval(moments: Moments, alpha: float = ALPHA) -> Interval | None:
    """Around the mean; None if data is insufficient."""
    mean, variance = moments.mean, moments.variance
    if moments.units < FEWEST or mean is None or variance is None:
        return None
    half = sqrt(variance) * widening(moments.n, alpha)
    if moments.share:
        return max(mean - half, 0.0), min(mean + half, 1.0)
    return mean - half, mean + half


def difference(control: Moments, other: Moments, comparisons: int) -> Interval | None:
    """Around the other's mean minus the control's; alpha is divided evenly among the comparisons (Bonferroni).

    Without a difference both have the same spread, so neither is assumed to have less than the pooled one.  A small
    group may not have seen rare events yet; its own spread alone would make it seem more certain the less it has seen.
    """
    if min(control.units, other.units) < FEWEST or control.mean is None or other.mean is None:
        return None
    calls = control.n + other.n
    together = (control.spread * control.n + other.spread * other.n) / calls
    if not together:
        return None
    variance = sum(max(one.spread, together) / one.n for one in (control, other))
    half = sqrt(variance) * widening(calls, ALPHA / comparisons)
    middle = other.mean - control.mean
    return middle - half, middle + half


def verdict(found: Interval | None, enough: bool, sense: Sense | None) -> Verdict:
    if not enough:
        return "too few units yet"
    if found is None or found[0] <= 0 <= found[1]:
        return "no difference seen yet"
    up = found[0] > 0
    if sense is None:
        return "higher" if up else "lower"
    return "better" if up == (sense == "higher") else "worse"


def mismatch(counts: Sequence[int], weights: Sequence[int]) -> float:
    """An always-valid p-value for these counts, if the weights set the shares.

    The inverse of a Bayes factor: shares distributed around the set ones (Dirichlet) against exactly these.  Source:
    Lindon, Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022.
    """
    whole, total = sum(weights), sum(counts)
    against = lgamma(FIRM) - lgamma(FIRM + total)
    for count, weight in zip(counts, weights, strict=True):
        share = weight / whole
        against += lgamma(FIRM * share + count) - lgamma(FIRM * share) - count * log(share)
    return min(1.0, exp(-against)) if against > 0 else 1.0
