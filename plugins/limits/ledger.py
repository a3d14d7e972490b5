"""The spending of budgets in SQL: written in the background, and read if a counter does not exist."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.limits.calendar import begin_of
from plugins.limits.tables import SPENT
from proxy.host import Services
from proxy.sql.database import Database, DatabaseAway
from proxy.wire.ids import new_id

log = logging.getLogger(__name__)
BATCH: Final = 500
MOST: Final = 100_000
"""Counters that wait while the database is unavailable; spending of further ones is lost at a restart."""
PATIENCE: Final = 2.0
"""Seconds that a call waits for the database's answer."""
REST: Final = 5.0
"""Seconds for which a database that did not answer is not asked again."""
KEEP: Final = 62 * 86_400.0
DAY: Final = 86_400.0
SAY: Final = 60.0
"""Seconds between two log lines."""


class Ledger:
    """One per process, kept across reloads; several processes may write into one database."""

    def __init__(self, opened: Callable[[], Database], services: Services) -> None:
        """opened: returns the database."""
        self.opened = opened
        self.clock = services.clock
        self.background = services.background
        self.pending: dict[str, int] = {}
        self.mark = f"process {new_id('')}"
        """The key of this process's own row, which holds the number of the last batch that was written."""
        self.number = 0
        self.batch: Mapping[str, int] = {}
        """The batch being written; if a confirmation was lost, it may be in the database already."""
        self.turn = asyncio.Lock()
        self.asked: set[str] = set()
        self.next: asyncio.Task[Mapping[str, int]] | None = None
        self.rests = self.said = self.swept = float("-inf")
        self.lost = 0
        """Number of amounts dropped because too many counters were waiting."""
        self.finishing: asyncio.Task[None] | None = None

    @property
    def database(self) -> Database:
        return self.opened()

    def add(self, counter: str, amount: int) -> None:
        if counter in self.pending or len(self.pending) < MOST:
            self.pending[counter] = self.pending.get(counter, 0) + amount
        else:
            self.lost += 1
            told = f"{self.lost} amounts that were spent are not written down"
            self.say(f"more than {MOST} counters wait for the database; {told}")

    async def flush(self) -> dict[str, int]:
        """Write everything that is pending; returns the totals of these counters over all processes."""
        totals: dict[str, int] = {}
        async with self.turn:
            while some := self.next_batch():
                try:
                    totals |= await self.write(some)
                except DatabaseAway as error:
                    self.say(f"{error.why}  What was spent is written down when it is back.")
                    break
                self.batch = {}
                for counter, amount in some.items():
                    self.pending[counter] -= amount
                    if not self.pending[counter]:
                        del self.pending[counter]
        return totals

    def finish(self) -> None:
        """Write the rest in the background when a plugin closes: the next configuration may have no limits."""
        if self.pending and (self.finishing is None or self.finishing.done()):
            self.finishing = self.background.start(self.finished(), "writing down what was spent")

    async def finished(self) -> None:
        """Retry until everything is written; if the server stops before, log what is lost."""
        try:
            while self.pending:
                await asyncio.sleep(REST)
                await self.flush()
        except asyncio.CancelledError:
            log.error("the spending of %s budgets was not recorded before the server stopped", len(self.pending))
            raise

    def next_batch(self) -> Mapping[str, int]:
        if not self.batch and self.pending:
            self.batch = dict(sorted(self.pending.items())[:BATCH])  # sorted, so that two writers cannot deadlock
            self.number += 1
        return self.batch

    async def write(self, some: Mapping[str, int]) -> dict[str, int]:
        """The new totals of these counters.  Idempotent: a batch whose confirmation was lost is not added twice."""
        insert = self.database.insert
        new = insert(SPENT).values([row(counter, amount) for counter, amount in some.items()])
        added = new.on_conflict_do_update(
            index_elements=[SPENT.c.counter], set_={"spent": SPENT.c.spent + new.excluded.spent}
        )
        marked = {"counter": self.mark, "begins": int(self.clock.time() * 1e6), "spent": self.number}
        fresh = insert(SPENT).values(marked)
        fresh = fresh.on_conflict_do_update(
            index_elements=[SPENT.c.counter],
            set_={"spent": fresh.excluded.spent, "begins": fresh.excluded.begins},
            where=SPENT.c.spent < fresh.excluded.spent,
        )
        async with self.database.writing() as connection:
            if (await connection.execute(fresh.returning(SPENT.c.counter))).first() is None:
                return await spent_of(connection, list(some))
            told = await connection.execute(added.returning(SPENT.c.counter, SPENT.c.spent))
            return {one.counter: one.spent for one in told}

    async def spent(self, counters: Collection[str]) -> Mapping[str, int] | None:
        """What was spent, by counter; None if the database does not answer.  Concurrent calls share one query."""
        if self.clock.monotonic() < self.rests:
            return None
        self.asked.update(counters)
        if self.next is None:
            self.next = self.background.start(self.read(), "reading what was spent")
        return await self.next_report(self.next)

    async def next_report(self, reading: asyncio.Task[Mapping[str, int]]) -> Mapping[str, int] | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(reading)
        except (TimeoutError, DatabaseAway) as error:
            self.rests = self.clock.monotonic() + REST
            why = error.why if isinstance(error, DatabaseAway) else "the database does not answer"
            self.say(f"{why}  It is not known what was spent of budgets.")
            return None

    async def read(self) -> Mapping[str, int]:
        async with self.turn:  # so that no batch is being written meanwhile
            asked, self.asked, self.next = list(self.asked), set(), None
            found: dict[str, int] = {}
            for some in batches([*asked, self.mark]):
                async with self.database.reading() as connection:
                    found |= await spent_of(connection, some)
            there = self.batch if found.get(self.mark) == self.number else {}  # written, although still pending
            waiting = {counter: self.pending.get(counter, 0) - there.get(counter, 0) for counter in asked}
            return {counter: found.get(counter, 0) + amount for counter, amount in waiting.items()}

    async def sweep(self) -> None:
        """Once a day, delete counters of days and months that ended long ago."""
        now = self.clock.time()
        if now - self.swept < DAY:
            return
        self.swept = now
        try:
            async with self.database.writing() as connection:
                await connection.execute(delete(SPENT).where(SPENT.c.begins < int((now - KEEP) * 1e6)))
        except DatabaseAway as error:
            self.say(error.why)

    def say(self, text: str) -> None:
        if (now := self.clock.monotonic()) - self.said >= SAY:
            self.said = now
            log.warning("%s", text)


async def spent_of(connection: AsyncConnection, counters: Sequence[str]) -> dict[str, int]:
    wanted = select(SPENT.c.counter, SPENT.c.spent).where(SPENT.c.counter.in_(counters))
    return {one.counter: one.spent for one in await connection.execute(wanted)}


def row(counter: str, amount: int) -> dict[str, str | int]:
    begins = int(begin_of(counter.rpartition("|")[2]) * 1e6)
    return {"counter": counter, "begins": begins, "spent": amount}


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(names), BATCH):
        yield names[at : at + BATCH]
