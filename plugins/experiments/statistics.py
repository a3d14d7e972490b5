"""What results allow to be said, at any time and as often as anybody looks.

Everything here is of ratios, sums of one thing over sums of another, over units: the calls of a unit are alike, and to
take them for independent would make intervals far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt
from typing import Final, Literal, TypeAlias

from plugins.experiments.definition import Sense

ALPHA: Final = 0.05
"""How often, at most, something is said of variants between which there is nothing."""
UNUSUAL: Final = 0.01
"""Below this a split is not what it was set to be."""
FEWEST: Final = 100
"""Units of each variant, before anything is said: the rules are of sums of many."""
TIGHTEST: Final = 5000
"""Observations at which intervals are as narrow as they can be; fixed beforehand, and not by what was seen."""
FIRM: Final = 500.0
"""How firmly a split is believed to be nearly right, if it is not right: in units."""
Verdict: TypeAlias = Literal["better", "worse", "higher", "lower", "no difference seen yet", "too few units yet"]
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of units: how many, and sums over them of a numerator x, a denominator n, and their squares and product.

    share: whether x counts some of the n.
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
        """Of the mean, by the delta method; None where the units do not differ, which says nothing.

        Source: Deng, Knoblich, Lu, Applying the Delta Method in Metric Analytics, KDD 2018.  A share has at least the
        variance of independent calls with two more of either kind (Agresti, Coull 1998), so that none of a hundred is
        not taken for never.
        """
        if self.units < 2 or not self.n:
            return None
        mean = self.x / self.n
        squares = max(self.xx - 2 * mean * self.xn + mean * mean * self.nn, 0.0)
        if self.share:
            near = (self.x + 2) / (self.n + 4)
            squares = max(squares, self.n * near * (1 - near))
        if squares <= 1e-12 * self.xx:  # nothing but what was rounded
            return None
        return squares / (self.n * self.n) * self.units / (self.units - 1)

    @property
    def spread(self) -> float:
        """The variance of as much of n as one; 0 where nothing is known of it."""
        return (self.variance or 0.0) * self.n


def widening(observations: float, alpha: float) -> float:
    """By how many standard errors a mean may be off, at all times together but for a chance of alpha.

    The closed form of an asymptotic confidence sequence: a Gaussian mixture over the drifts of a Brownian motion.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory and asymptotic confidence
    sequences, Annals of Statistics 52 (2024).  Time is counted in calls, the errors are those of units: where the calls
    of a unit are alike, sums at two times are correlated more than those of independent calls, and by Slepian's lemma
    cross the same boundary no more often.
    """
    rho = (-2 * log(alpha) + log(-2 * log(alpha) + 1)) / TIGHTEST
    grown = observations * rho + 1
    return sqrt(grown / (grown - 1) * (log(grown) - 2 * log(alpha)))


def interval(moments: Moments, alpha: float = ALPHA) -> Interval | None:
    """Around the mean; None where too little is known."""
    mean, variance = moments.mean, moments.variance
    if moments.units < FEWEST or mean is None or variance is None:
        return None
    half = sqrt(variance) * widening(moments.n, alpha)
    if moments.share:
        return max(mean - half, 0.0), min(mean + half, 1.0)
    return mean - half, mean + half


def difference(control: Moments, other: Moments, comparisons: int) -> Interval | None:
    """Around the other's mean less the control's; alpha is shared out evenly among the comparisons (Bonferroni).

    Where there is no difference both spread alike, so neither is taken to spread less than both do together.  What is
    rare, a few of the smaller one have not shown yet: by their own spread they would be surer the less they have seen.
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
    """A p-value, right at all times together, of so many units where shares by these weights were set.

    The inverse of a Bayes factor: of shares around the set ones (Dirichlet) against these themselves.  Source: Lindon,
    Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022.
    """
    whole, total = sum(weights), sum(counts)
    against = lgamma(FIRM) - lgamma(FIRM + total)
    for count, weight in zip(counts, weights, strict=True):
        share = weight / whole
        against += lgamma(FIRM * share + count) - lgamma(FIRM * share) - count * log(share)
    return min(1.0, exp(-against)) if against > 0 else 1.0
