"""Pairs of models that were compared, who won, and the resulting ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from plugins.comparison.outcomes import Names, Outcome
from plugins.comparison.ranking import Game, strengths
from plugins.comparison.results import NONE_GOOD, TIE
from proxy.types import JSON


class GameCollector:
    """Collects games from comparisons, which are added newest first.  by: `votes`, `judge` or `all`."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.names = Names()
        self.none_good = 0
        self.met: list[tuple[int, str, str, float]] = []
        """The number of a comparison, two models, and the first one's score: 1, 0.5 or 0.  Plain tuples, because the
        garbage collector would scan a hundred thousand objects of another type again and again."""
        self.count = 0

    def add(self, one: Outcome) -> None:
        self.count += 1
        self.names.add(one.results.values())
        self.none_good += self.by != "judge" and one.vote == NONE_GOOD
        for first, second, score in pairs(one, self.by):
            here, there = one.results[first].named, one.results[second].named
            if here != there:  # two names can mean the same model
                self.met.append((self.count, here, there, score))

    def as_json(self) -> dict[str, JSON]:
        """The ranking.  Takes a while and accesses nothing shared, so it can run in a thread."""
        called = self.names.most()
        met = [one for one in self.met if one[1] in called and one[2] in called]
        told: dict[str, JSON] = {"comparisons": len({one[0] for one in met}), "none_good": self.none_good}
        if not met:
            return {**told, "models": []}
        order = sorted({name for one in met for name in one[1:3]})
        places = {name: index for index, name in enumerate(order)}
        games = [(number, places[one], places[other], score) for number, one, other, score in met]
        return {**told, "models": ranked(games, [called[name] for name in order])}


def ranked(games: Sequence[Game], names: Sequence[str]) -> list[dict[str, JSON]]:
    """The ranking, best first.  names: of the models, by their index in the games."""
    stood, found = standings(games, len(names)), strengths(games, len(names))
    return [
        {
            "rank": rank,
            "model": names[index],
            "rating": round(float(found.ratings[index]), 1),
            "interval": [round(float(found.low[index]), 1), round(float(found.high[index]), 1)],
            **asdict(stood[index]),
        }
        for rank, index in enumerate(sorted(range(len(names)), key=lambda at: (-found.ratings[at], at)), 1)
    ]


def pairs(one: Outcome, by: str) -> Iterable[tuple[int, int, float]]:
    """Pairs of places in a comparison with the first one's score.  Failed answers are left out, and a vote that no
    answer is good gives no pairs."""
    answered = sorted(place for place, result in one.results.items() if result.success)
    if by != "judge" and one.vote is not None and one.vote != NONE_GOOD:
        if one.vote == TIE:
            yield from ((first, second, 0.5) for first, second in combinations(answered, 2))
        else:
            yield from ((one.vote, place, 1.0) for place in answered if place != one.vote)
    if by != "votes":
        for first, second, winner in one.judgements:
            yield first, second, 0.5 if winner == TIE else float(winner == first)


@dataclass(slots=True)
class Standing:
    """The totals of one model in a ranking."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    comparisons: int = 0


def standings(games: Iterable[Game], models: int) -> list[Standing]:
    stood = [Standing() for _ in range(models)]
    seen: set[tuple[int, int]] = set()
    for comparison, one, other, score in games:
        for model, won in ((one, score), (other, 1 - score)):
            stood[model].wins += won == 1
            stood[model].losses += won == 0
            stood[model].ties += won == 0.5
            if (comparison, model) not in seen:
                seen.add((comparison, model))
                stood[model].comparisons += 1
    return stood
