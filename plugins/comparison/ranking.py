"""Ratings of models from pairwise results: Bradley and Terry, "Rank Analysis of Incomplete Block Designs", 1952.

A model of strength a beats one of strength b with probability 1 / (1 + exp(b - a)); a tie is half a win for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:  # numpy is imported by the first ranking that needs it, not at start
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PRIOR: Final = 0.5
"""Wins, and as many losses, of every model against one of average strength; so a model that never lost has a finite
strength."""
CENTRE: Final = 1000.0
SCALE: Final = 400 / log(10)
"""Factor to Elo's scale, on which 400 more points mean winning ten times as often."""
DRAWS: Final = 400
TOGETHER: Final = 2_000_000
"""Maximum array elements of draws in memory at once."""
STEPS: Final = 200
CLOSE: Final = 1e-9
SEED: Final = 20_010


Game: TypeAlias = tuple[int, int, int, float]
"""The number of a comparison, two of its models, and the first one's score: 1 is a win, 0.5 a tie, 0 a loss."""


@dataclass(frozen=True, slots=True)
class Strengths:
    """By model, on Elo's scale: the rating and its 95 % interval."""

    ratings: Array
    low: Array
    high: Array


def strengths(games: Sequence[Game], models: int) -> Strengths:
    """The ratings of the models, each of which occurs in a game.  The same games give the same numbers.

    The intervals come from a Bayesian bootstrap: comparisons, and the prior's wins and losses, get random weights.  A
    plain bootstrap would give a model that never lost an interval of no width.  Source: Rubin, "The Bayesian
    Bootstrap", 1981.
    """
    import numpy as np

    met = GameArrays(games, models)
    ratings = likeliest(met)
    drawn = np.concatenate(list(draws(met, np.random.default_rng(SEED))))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return Strengths(*(CENTRE + SCALE * one for one in (ratings, np.minimum(low, ratings), np.maximum(high, ratings))))


def likeliest(met: GameArrays) -> Array:
    """The maximum-likelihood strengths, centred on 0, not yet on Elo's scale."""
    import numpy as np

    even = np.full((1, met.models), PRIOR)
    found: Array = fitted(met.wins(np.ones((1, met.comparisons))), even, even)[0]
    return found


def draws(met: GameArrays, chance: np.random.Generator) -> Iterator[Array]:
    """Strengths under random weights, in batches."""
    left = DRAWS
    while left:
        some = max(1, min(left, TOGETHER // max(met.comparisons, met.models**2, 1)))
        weights = chance.standard_exponential((some, met.comparisons))
        priors = PRIOR * chance.standard_exponential((2, some, met.models))
        yield fitted(met.wins(weights), priors[0], priors[1])
        left -= some


class GameArrays:
    """The games as arrays."""

    def __init__(self, games: Sequence[Game], models: int) -> None:
        import numpy as np

        self.models = models
        numbers, one, other, scores = (np.array(column) for column in zip(*games, strict=True))
        seen, self.rows = np.unique(numbers, return_inverse=True)
        self.comparisons = len(seen)
        self.ways, self.back = one * models + other, other * models + one
        self.scores = scores.astype(np.float64)

    def wins(self, weights: Array) -> Array:
        """Weighted wins, shape (rows, models, models).  weights: shape (rows, comparisons)."""
        import numpy as np

        size = self.models**2
        places, worth = np.concatenate([self.ways, self.back]), np.concatenate([self.scores, 1 - self.scores])
        rows = np.concatenate([self.rows, self.rows])
        made = [np.bincount(places, weights=worth * one[rows], minlength=size) for one in weights]
        whole: Array = np.stack(made).reshape(len(weights), self.models, self.models).astype(np.float64)
        return whole


def fitted(wins: Array, prior_wins: Array, prior_losses: Array) -> Array:
    """The maximum-likelihood strengths, shape (draws, models), by Newton's method, damped so that it cannot overshoot.

    They are centred on 0 in each draw, since games only determine differences.

    wins: shape (draws, models, models).  Source: Sun and Tran-Dinh, "Generalized self-concordant functions", 2019:
    for functions like this one, Newton's step is scaled by log(1 + r) / r, where r is its length.
    """
    import numpy as np

    games, prior = wins + wins.swapaxes(1, 2), prior_wins + prior_losses
    found, models = np.zeros(prior_wins.shape), np.arange(wins.shape[1])
    for _ in range(STEPS):
        chances = logistic(found[:, :, None] - found[:, None, :])
        alone = logistic(found)
        slope = (wins - games * chances).sum(axis=2) + prior_wins - prior * alone
        bends = games * chances * (1 - chances)
        curve = -bends
        curve[:, models, models] += bends.sum(axis=2) + prior * alone * (1 - alone)
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        reach = np.maximum(step.max(axis=1), 0) - np.minimum(step.min(axis=1), 0)
        if reach.max() < CLOSE:
            break
        found += step * (np.log1p(reach) / np.maximum(reach, CLOSE))[:, None]
    centred: Array = found - found.mean(axis=1, keepdims=True)
    return centred


def logistic(value: Array) -> Array:
    """The logistic function, written so that it cannot overflow."""
    import numpy as np

    half: Array = 0.5 * (1 + np.tanh(0.5 * value))
    return half
