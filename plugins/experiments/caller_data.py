"""The figures of one caller's units: exported or deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, select

from plugins.experiments.batch import clean
from plugins.experiments.store import clear
from plugins.experiments.tables import CALLS, METRICS, UNITS
from plugins.experiments.writer import Writer
from proxy.types import JSON

CHUNK: Final = 1000
"""Rows read at once."""


@dataclass(frozen=True, slots=True)
class CallerFigures:
    """Only rows with an owner; rows shared by many units identify nobody and are kept."""

    writer: Writer
    name: str = "experiments"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        await self.writer.flush()
        for table in (UNITS, METRICS):
            after: tuple[Any, ...] | None = None
            keys = list(table.primary_key.columns)
            while True:
                query = select(table).where(table.c.owner == clean(caller)).order_by(*keys).limit(CHUNK)
                if after is not None:
                    query = query.where(behind(keys, after))
                async with self.writer.store.database.reading() as connection:
                    rows = (await connection.execute(query)).mappings().all()
                for row in rows:
                    yield {str(name): value for name, value in row.items() if name != "owner"}
                if len(rows) < CHUNK:
                    break
                after = tuple(rows[-1][key.name] for key in keys)

    async def forget(self, caller: str) -> int:
        await self.writer.flush()
        name = clean(caller)
        database = self.writer.store.database
        await clear(database, CALLS, CALLS.c.caller == name)
        await clear(database, METRICS, METRICS.c.owner == name)
        return await clear(database, UNITS, UNITS.c.owner == name)


def behind(keys: list[Any], after: tuple[Any, ...]) -> ColumnElement[bool]:
    """Rows that come after the given values, in the order of these columns (keyset pagination)."""
    first, *others = keys
    later: ColumnElement[bool] = first > after[0]
    return later if not others else later | and_(first == after[0], behind(others, after[1:]))
