"""Deletes old answers and those beyond a caller's limits, and fails responses whose process has died."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, delete, exists, func, select, text, true
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.stored.answers import LOST, StoredAnswer, micros
from plugins.stored.store import LIGHT, Store
from plugins.stored.tables import ANSWERS
from proxy.host import Host
from proxy.types import Moment
from proxy.wire.openai_responses_out import Response, cut

DAY: Final = 86_400
EVERY: Final = 600.0
"""Seconds between two runs."""
CHUNK: Final = 500
"""Rows deleted at once."""
FOUND: Final = 20 * CHUNK
"""Rows selected at once."""
SILENT: Final = 5.0
"""Seconds to wait for another heartbeat before a response with an old one counts as lost: if a clock was set forward,
or another machine's is ahead, the heartbeats of living processes look old, too."""
LOCK: Final = zlib.crc32(b"gemmapy-proxy stored")


@dataclass(frozen=True, slots=True)
class Retention:
    """days, entries and bytes: see the settings.  Several processes may do this at once."""

    store: Store
    host: Host
    days: int | None
    entries: int
    bytes: int

    async def tidy(self) -> None:
        await self.fail_lost()
        if self.days is not None:
            child = ANSWERS.alias("child")
            old = ANSWERS.c.at < micros(self.host.clock.time() - self.days * DAY)
            # Responses that continue an answer are newer: a thread is deleted from its end.
            await self.remove(old & ~exists().where(child.c.parent == ANSWERS.c.id, child.c.owner == ANSWERS.c.owner))
        owner, newest = ANSWERS.c.owner, (ANSWERS.c.at.desc(), ANSWERS.c.id.desc())
        rank = func.row_number().over(partition_by=owner, order_by=newest).label("rank")
        upto = func.sum(ANSWERS.c.bytes).over(partition_by=owner, order_by=newest).label("upto")
        ranked = select(ANSWERS.c.id, rank, upto).subquery()
        over = (ranked.c.rank > self.entries) | (ranked.c.upto > self.bytes)
        await self.remove(ANSWERS.c.id.in_(select(ranked.c.id).where(over)), true())

    async def fail_lost(self) -> None:
        if not (before := await self.stale()):
            return
        await self.host.clock.sleep(SILENT)
        for kept in await self.stale():
            if any((one.id, one.beat) == (kept.id, kept.beat) for one in before):
                await fail(self.store, kept)

    async def stale(self) -> list[StoredAnswer]:
        """Running responses whose last heartbeat is old by the clock."""
        old = ANSWERS.c.beat < micros(self.host.clock.time() - LOST)
        async with self.host.database.reading() as connection:
            rows = (await connection.execute(select(*LIGHT).where(old).limit(CHUNK))).mappings().all()
        return [StoredAnswer.of({**row}) for row in rows]

    async def remove(self, which: ColumnElement[bool], still: ColumnElement[bool] | None = None) -> int:
        """Select the rows without a lock, then delete them in small transactions; returns how many.

        still: the condition checked again on deletion; None is `which`.
        """
        still, whole = which if still is None else still, 0
        while True:
            async with self.host.database.reading() as connection:
                ids = (await connection.execute(select(ANSWERS.c.id).where(which).limit(FOUND))).scalars().all()
            gone = sum([await self.delete(ids[at : at + CHUNK], still) for at in range(0, len(ids), CHUNK)])
            whole += gone
            if not gone:
                return whole

    async def delete(self, ids: Sequence[str], still: ColumnElement[bool]) -> int:
        async with self.host.database.writing() as connection:
            await alone(connection)
            return (await connection.execute(delete(ANSWERS).where(ANSWERS.c.id.in_(ids), still))).rowcount


async def fail(store: Store, kept: StoredAnswer) -> None:
    """Mark a response as failed because its process has died."""
    await store.ended(kept.id, Response(kept.head, Moment()).failure(cut()))


async def alone(connection: AsyncConnection) -> None:
    """Lock out other processes until the transaction ends; SQLite has only one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
