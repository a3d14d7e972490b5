"""The rows of one caller: exported, or deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Table, delete, select

from plugins.usage.rows import clean
from plugins.usage.statements import alone
from plugins.usage.tables import ATTEMPTS, CALLS, SUMS
from plugins.usage.writer import Writer
from proxy.host import Host
from proxy.types import JSON

CHUNK: Final = 1000
"""Rows read or deleted at once."""


@dataclass(frozen=True, slots=True)
class CallerRecords:
    """Everybody's sums are kept: they identify nobody."""

    writer: Writer
    host: Host
    name: str = "usage"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        await self.writer.flush()
        after, columns = -1, [column for column in CALLS.c if column.name not in ("id", "caller")]
        while True:
            query = select(CALLS.c.id, *columns).where(CALLS.c.caller == clean(caller), CALLS.c.id > after)
            async with self.host.database.reading() as connection:
                rows: list[Any] = list((await connection.execute(query.order_by(CALLS.c.id).limit(CHUNK))).mappings())
            for row in rows:
                yield {str(name): value for name, value in row.items() if name != "id" and value not in ("", None)}
            if len(rows) < CHUNK:
                return
            after = rows[-1]["id"]

    async def forget(self, caller: str) -> int:
        await self.writer.flush()
        name = clean(caller)
        await self.remove(ATTEMPTS, name)
        for sums in SUMS.values():
            await self.remove(sums, name)
        return await self.remove(CALLS, name)

    async def remove(self, table: Table, caller: str) -> int:
        some, whole = select(table.c.id).where(table.c.caller == caller).limit(CHUNK), 0
        if table in SUMS.values():
            some = some.where(table.c.own == 1)
        while True:
            async with self.host.database.writing() as connection:
                await alone(connection)
                gone = await connection.execute(delete(table).where(table.c.id.in_(some)))
            whole += gone.rowcount
            if gone.rowcount < CHUNK:
                return whole
            await asyncio.sleep(0)
