"""Writes counted calls and ratings to the database: bounded, in the background, so no call waits for it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.experiments.assigning import bucket
from plugins.experiments.batch import Batch, FigureKey, PendingRating, RecordedCall, clean
from plugins.experiments.index import Assigned
from plugins.experiments.store import Store
from plugins.experiments.tables import BATCHES, CALLS, COUNTS, UNITS
from proxy.announcements import CallEnded, Rated
from proxy.errors import Busy
from proxy.sql.backlog import Backlog

log = logging.getLogger(__name__)
U: Final = UNITS.c
BATCH: Final = 1000
"""Calls written at once."""
FRESH: Final = 60.0
"""Seconds for which a count of rows is reused."""
LATE: Final = 10.0
"""Seconds for which to look for a rated call: another process may not have written it yet."""
CHUNK: Final = 400
"""Rows looked up at once."""
WORTH: Final = {"up": 1, "down": -1, "none": 0}


class Writer(Backlog):
    what = "calls and ratings of experiments"

    def __init__(self, store: Store) -> None:
        super().__init__(store.host.clock)
        self.store = store
        self.most_units = 0
        """Maximum number of an experiment's units that have rows of their own."""
        self.next = Batch()
        self.calls = 0
        """Number of calls in the waiting batches."""
        self.writing: deque[Batch] = deque()
        self.ratings: deque[PendingRating] = deque()
        self.sizes: dict[str, tuple[float, int]] = {}
        """By experiment: when its count of rows expires, and an upper bound for that count."""

    @property
    def pending(self) -> int:
        return self.calls + len(self.ratings)

    def add(self, assigned: Assigned, ended: CallEnded) -> None:
        if self.pending >= self.most:
            self.lose(1)
            return
        self.next.add(assigned, ended)
        self.calls += 1
        if len(self.next.calls) >= BATCH:
            self.close_batch()

    def close_batch(self) -> None:
        self.writing.append(self.next)
        self.next = Batch()

    def rated(self, one: Rated) -> None:
        if self.pending < self.most:
            until = self.store.host.clock.monotonic() + LATE
            self.ratings.append(PendingRating(one.call, clean(one.caller), WORTH[one.rating], until))
        else:
            self.lose(1)

    async def flush(self) -> None:
        if not self.pending:
            return
        async with self.turn:
            if self.next.calls:
                self.close_batch()
            while self.writing:
                await self.write(self.writing[0])
                self.calls -= len(self.writing.popleft().calls)
            if self.ratings:
                await self.rate()

    async def write(self, batch: Batch) -> None:
        try:
            await self.put(batch)
        except Busy:
            raise
        except Exception:  # a batch that no database accepts must not block the others
            log.exception("the results of %s calls cannot be written", len(batch.calls))
            self.lose(len(batch.calls))

    async def put(self, batch: Batch) -> None:
        async with self.store.database.writing() as connection:
            mark = {"id": batch.id, "at": self.store.now()}
            # Waits for a transaction that is inserting the same id: its connection may have broken before the reply.
            new = await connection.execute(self.store.database.insert(BATCHES).values(mark).on_conflict_do_nothing())
            if not new.rowcount:
                return
            shared = await self.shared(connection, batch)
            rows = batch.moved(shared)
            made = self.store.database.insert(UNITS)
            more = {name: U[name] + made.excluded[name] for name in COUNTS}
            keys = [U.experiment, U.variant, U.unit]
            await connection.execute(made.on_conflict_do_update(index_elements=keys, set_=more), rows)
            await connection.execute(insert(CALLS), list(seen(batch.calls, shared)))
        self.sizes = {id: size for id, size in self.sizes.items() if size[0] > self.store.host.clock.monotonic()}

    async def shared(self, connection: AsyncConnection, batch: Batch) -> dict[FigureKey, FigureKey]:
        """The shared rows of those units that get no row of their own because the experiment has too many."""
        found: dict[FigureKey, FigureKey] = {}
        for experiment in {place.experiment for place in batch.units}:
            mine = [place for place in batch.units if place.experiment == experiment]
            if await self.has_room(connection, experiment, len(mine)):
                continue
            known = await self.known(connection, experiment, mine)
            for place in mine:
                if (place.variant, place.unit) not in known:
                    found[place] = place._replace(unit=bucket(place.unit))
        return found

    async def has_room(self, connection: AsyncConnection, experiment: str, more: int) -> bool:
        """Whether this many new units may have their own rows.  Rows are counted occasionally, and near the limit."""
        now = self.store.host.clock.monotonic()
        until, upto = self.sizes.get(experiment, (now, 0))
        if now >= until or upto + more > self.most_units:
            count = select(func.count()).select_from(UNITS).where(U.experiment == experiment)
            until, upto = now + FRESH, (await connection.execute(count)).scalar_one()
        self.sizes[experiment] = until, upto + more
        return upto + more <= self.most_units

    async def known(
        self, connection: AsyncConnection, experiment: str, places: Sequence[FigureKey]
    ) -> set[tuple[str, str]]:
        known: set[tuple[str, str]] = set()
        for at in range(0, len(places), CHUNK):
            some = [(one.variant, one.unit) for one in places[at : at + CHUNK]]
            wanted = (U.experiment == experiment) & tuple_(U.variant, U.unit).in_(some)
            rows = await connection.execute(select(U.variant, U.unit).where(wanted))
            known |= {(row.variant, row.unit) for row in rows}
        return known

    async def rate(self) -> None:
        """Assign the waiting ratings to their calls; idempotent, so a failed attempt can be repeated."""
        now, waiting = self.store.host.clock.monotonic(), list(self.ratings)
        there = await self.there([said.call for said in waiting])
        left = [said for said in waiting if not (said.call in there and await self.counted(said)) and said.until > now]
        for _ in waiting:
            self.ratings.popleft()
        self.ratings.extendleft(reversed(left))

    async def there(self, calls: Sequence[str]) -> set[str]:
        """Which of these calls were in an experiment.  Most were not, and this check needs no write lock."""
        found: set[str] = set()
        async with self.store.database.reading() as connection:
            for at in range(0, len(calls), CHUNK):
                query = select(CALLS.c.call).where(CALLS.c.call.in_(calls[at : at + CHUNK]))
                found |= set((await connection.execute(query)).scalars())
        return found

    async def counted(self, said: PendingRating) -> bool:
        """Record a rating; False if its call was not found."""
        async with self.store.database.writing() as connection:
            mine = (CALLS.c.call == said.call) & (CALLS.c.caller == said.caller)
            query = select(CALLS).where(mine).order_by(CALLS.c.id.desc()).limit(1).with_for_update()
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                return False
            old, new = row["rating"], said.worth
            if old != new:
                await connection.execute(update(CALLS).where(CALLS.c.id == row["id"]).values(rating=new))
                here = (U.experiment == row["experiment"]) & (U.variant == row["variant"]) & (U.unit == row["unit"])
                more: dict[str, Any] = {
                    "up": U.up + ((new > 0) - (old > 0)),
                    "down": U.down + ((new < 0) - (old < 0)),
                }
                await connection.execute(update(UNITS).where(here).values(**more))
        return True


def seen(calls: Iterable[RecordedCall], shared: dict[FigureKey, FigureKey]) -> Iterator[dict[str, Any]]:
    """Rows for CALLS, each with the unit that its call is counted for."""
    for one in calls:
        place = shared.get(FigureKey(one.experiment, one.variant, one.unit))
        yield {**one._asdict(), **({} if place is None else {**place._asdict(), "owner": ""})}
