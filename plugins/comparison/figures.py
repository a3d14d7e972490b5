"""Reads the newest comparisons and computes rankings and statistics from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy import select

from plugins.comparison.counts import Counts
from plugins.comparison.forms import Figures, Ranking
from plugins.comparison.outcomes import Brief, Outcome
from plugins.comparison.standings import GameCollector
from plugins.comparison.store import R, Store
from plugins.comparison.tables import JUDGEMENTS, RESULTS
from proxy.types import JSON

MOST: Final = 10_000
"""Maximum number of comparisons that are read."""
SOME: Final = 100
"""Comparisons read at once; in between, the event loop gets a turn."""
DAY: Final = 86_400 * 10**6


class FiguresReader:
    """Computes one result at a time per process: each can keep a CPU busy for up to a second."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.turn = asyncio.Lock()

    async def ranking(self, owner: str | None, asked: Ranking) -> dict[str, JSON]:
        """owner: None for the comparisons of all callers."""
        return {**head(owner, asked), "by": asked.by, **(await self.computed(owner, asked, GameCollector(asked.by)))}

    async def statistics(self, owner: str | None, asked: Figures) -> dict[str, JSON]:
        return {**head(owner, asked), **(await self.computed(owner, asked, Counts()))}

    async def computed(self, owner: str | None, asked: Figures, sums: GameCollector | Counts) -> dict[str, JSON]:
        async with self.turn:
            async for one in self.rounds(owner, asked):
                sums.add(one)
            return await asyncio.to_thread(sums.as_json)

    async def rounds(self, owner: str | None, asked: Figures) -> AsyncIterator[Outcome]:
        """The comparisons, newest first."""
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
        columns = [RESULTS.c[name] for name in ("comparison", "place", *Brief._fields)]
        who = JUDGEMENTS.c
        async with self.store.database.reading() as connection:
            rounds = {row.number: Outcome(row.vote) for row in await connection.execute(query)}
            of_them = select(*columns).where(RESULTS.c.comparison.in_(rounds))
            for number, place, *told in await connection.execute(of_them):
                rounds[number].results[place] = Brief(*told)
            said = select(who.comparison, who.one, who.other, who.winner)
            said = said.where(who.comparison.in_(rounds), who.winner.is_not(None))
            for number, one, other, winner in await connection.execute(said):
                rounds[number].judgements.append((one, other, winner))
        return rounds


def head(owner: str | None, asked: Figures) -> dict[str, JSON]:
    return {"days": asked.days, "user": owner}
