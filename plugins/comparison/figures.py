"""Rankings and figures of many comparisons, of the newest ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import select

from plugins.comparison.forms import Figures, Ranking
from plugins.comparison.ranking import Game, strengths
from plugins.comparison.results import NONE_GOOD, TIE
from plugins.comparison.store import R, Store
from plugins.comparison.tables import JUDGEMENTS, RESULTS
from proxy.prices import money
from proxy.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST: Final = 10_000
"""Comparisons that are looked at."""
SOME: Final = 250
"""Of them together: the event loop goes on in between."""
MODELS: Final = 100
"""Models of a ranking: those that were compared most."""
DAY: Final = 86_400 * 10**6
BRIEF: Final = (
    "model", "named", "success", "duration_ns", "eval_ns", "letters", "first_ns", "eval_count", "cached", "cost",
    "currency", "rating",
)  # fmt: skip
"""What figures are made of."""


@dataclass(slots=True)
class Outcome:
    """What figures need of one comparison.  results: by place."""

    vote: int | None
    results: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    judgements: list[tuple[int, int, int]] = field(default_factory=list)
    """Two places, and which of them won, or TIE."""


@dataclass(slots=True)
class Standing:
    """What becomes of one model in a ranking."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    comparisons: int = 0


class Reading:
    """One figure is made at a time in each process: they cost a processor for up to a second."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.turn = asyncio.Lock()

    async def ranking(self, owner: str | None, asked: Ranking) -> dict[str, JSON]:
        """owner: None is everybody's."""
        async with self.turn:
            rounds = [one async for one in self.rounds(owner, asked)]
            return {**head(owner, asked), "by": asked.by, **(await asyncio.to_thread(ranked, rounds, asked.by))}

    async def statistics(self, owner: str | None, asked: Figures) -> dict[str, JSON]:
        async with self.turn:
            rounds = [one async for one in self.rounds(owner, asked)]
            return {**head(owner, asked), **(await asyncio.to_thread(counted, rounds))}

    async def rounds(self, owner: str | None, asked: Figures) -> AsyncIterator[Outcome]:
        """The newest first."""
        which, left = R.at >= self.store.now() - asked.days * DAY, MOST
        if owner is not None:
            which &= R.owner == owner
        last: int | None = None
        while left:
            limit = min(SOME, left)
            here = which if last is None else which & (R.number < last)
            query = select(R.number, R.vote).where(here).order_by(R.number.desc()).limit(limit)
            found = await self.some(query)
            for one in found.values():
                yield one
            if len(found) < limit:
                return
            left, last = left - limit, min(found)
            await asyncio.sleep(0)

    async def some(self, query: Any) -> dict[int, Outcome]:
        columns = [RESULTS.c[name] for name in ("comparison", "place", *BRIEF)]
        who = JUDGEMENTS.c
        async with self.store.database.reading() as connection:
            rounds = {row.number: Outcome(row.vote) for row in await connection.execute(query)}
            of_them = select(*columns).where(RESULTS.c.comparison.in_(rounds))
            for row in (await connection.execute(of_them)).mappings():
                rounds[row["comparison"]].results[row["place"]] = {**row}
            said = select(who.comparison, who.one, who.other, who.winner)
            said = said.where(who.comparison.in_(rounds), who.winner.is_not(None))
            for number, one, other, winner in await connection.execute(said):
                rounds[number].judgements.append((one, other, winner))
        return rounds


def head(owner: str | None, asked: Figures) -> dict[str, JSON]:
    return {"days": asked.days, "user": owner}


# --- rankings ----------------------------------------------------------------------------------------


def ranked(rounds: Sequence[Outcome], by: str) -> dict[str, JSON]:
    """rounds: the newest first."""
    called = names(rounds)
    met = [one for one in meetings(rounds, by) if called.keys() >= {one.one, one.other}]
    none_good = 0 if by == "judge" else sum(one.vote == NONE_GOOD for one in rounds)
    told: dict[str, JSON] = {"comparisons": len({one.comparison for one in met}), "none_good": none_good}
    if not met:
        return {**told, "models": []}
    order = sorted({name for one in met for name in (one.one, one.other)})
    places = {name: index for index, name in enumerate(order)}
    games = [Game(one.comparison, places[one.one], places[one.other], one.score) for one in met]
    stood, found = standings(games, len(order)), strengths(games, len(order))
    models = [
        {
            "rank": rank,
            "model": called[order[index]],
            "rating": round(float(found.ratings[index]), 1),
            "interval": [round(float(found.low[index]), 1), round(float(found.high[index]), 1)],
            **asdict(stood[index]),
        }
        for rank, index in enumerate(sorted(range(len(order)), key=lambda at: (-found.ratings[at], at)), 1)
    ]
    return {**told, "models": models}


class Meeting(NamedTuple):
    """A Game, by the names of models."""

    comparison: int
    one: str
    other: str
    score: float


def meetings(rounds: Sequence[Outcome], by: str) -> Iterator[Meeting]:
    for index, one in enumerate(rounds):
        for first, second, score in pairs(one, by):
            here, there = one.results[first]["named"], one.results[second]["named"]
            if here != there:  # two names may lead to one model
                yield Meeting(index, here, there, score)


def names(rounds: Iterable[Outcome]) -> dict[str, str]:
    """Of the models that were compared most, by the one form of their names, what they were called last."""
    called: dict[str, str] = {}
    times: dict[str, int] = {}
    for one in rounds:
        for result in one.results.values():
            called.setdefault(result["named"], result["model"])
            times[result["named"]] = times.get(result["named"], 0) + 1
    most = sorted(called, key=lambda name: (-times[name], name))[:MODELS]
    return {name: called[name] for name in most}


def pairs(one: Outcome, by: str) -> Iterable[tuple[int, int, float]]:
    """Who met whom in a comparison, by places, and who won.  What was not answered, or found not good, met nobody."""
    answered = sorted(place for place, result in one.results.items() if result["success"])
    if by != "judge" and one.vote is not None and one.vote != NONE_GOOD:
        if one.vote == TIE:
            yield from ((first, second, 0.5) for first, second in combinations(answered, 2))
        else:
            yield from ((one.vote, place, 1.0) for place in answered if place != one.vote)
    if by != "votes":
        for first, second, winner in one.judgements:
            yield first, second, 0.5 if winner == TIE else float(winner == first)


def standings(games: Iterable[Game], models: int) -> list[Standing]:
    stood = [Standing() for _ in range(models)]
    seen: set[tuple[int, int]] = set()
    for game in games:
        for model, won in ((game.one, game.score), (game.other, 1 - game.score)):
            stood[model].wins += won == 1
            stood[model].losses += won == 0
            stood[model].ties += won == 0.5
            if (game.comparison, model) not in seen:
                seen.add((game.comparison, model))
                stood[model].comparisons += 1
    return stood


# --- figures -----------------------------------------------------------------------------------------


def counted(rounds: Sequence[Outcome]) -> dict[str, JSON]:
    """By model; rounds: the newest first."""
    called = names(rounds)
    by_model: dict[str, list[Mapping[str, Any]]] = {name: [] for name in called}
    for one in rounds:
        for result in one.results.values():
            if result["named"] in by_model:
                by_model[result["named"]].append(result)
    models = [{"model": called[name], **figures(by_model[name])} for name in sorted(called)]
    return {"comparisons": len(rounds), "votes": sum(one.vote is not None for one in rounds), "models": models}


def figures(results: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
    """Times are of answers that were generated, and not kept from before."""
    good = [one for one in results if one["success"]]
    fresh = [one for one in good if not one["cached"]]
    timed = [one for one in fresh if one["eval_ns"] and one["eval_count"] is not None]
    spent = sum(one["eval_ns"] for one in timed)
    return {
        "answers": len(results),
        "success_rate": round(len(good) / len(results), 4) if results else None,
        "cached": len(good) - len(fresh),
        "duration": percentiles([one["duration_ns"] for one in fresh], 1e9),
        "first_token_ms": percentiles([one["first_ns"] for one in fresh if one["first_ns"] is not None], 1e6),
        "tokens_per_second": round(sum(one["eval_count"] for one in timed) * 1e9 / spent, 2) if spent else None,
        "average_letters": round(sum(one["letters"] for one in good) / len(good), 1) if good else None,
        "up": sum(one["rating"] > 0 for one in results),
        "down": sum(one["rating"] < 0 for one in results),
        **costs(results),
    }


def percentiles(nanoseconds: Sequence[int], unit: float) -> dict[str, JSON]:
    """unit: how many nanoseconds one of what is told has."""
    if not nanoseconds:
        return {"p50": None, "p90": None}
    import numpy as np

    values: NDArray[np.float64] = np.asarray(nanoseconds, dtype=np.float64) / unit
    middle, most = np.percentile(values, [50, 90])
    return {"p50": round(float(middle), 3), "p90": round(float(most), 3)}


def costs(results: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
    """Of those that have a price, in the currency of the newest of them."""
    priced = [one for one in results if one["cost"] is not None]
    if not priced:
        return {"cost": None, "currency": None}
    currency = priced[0]["currency"]
    return {"cost": money(sum(one["cost"] for one in priced if one["currency"] == currency)), "currency": currency}
