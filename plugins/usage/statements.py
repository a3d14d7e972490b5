"""Many rows in one statement, without what SQLAlchemy spends on each of their values."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Insert, Table, Update, bindparam, insert, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

LOCK: Final = zlib.crc32(b"gemmapy-proxy usage")
WHICH: Final = "which_row"


async def alone(connection: AsyncConnection) -> None:
    """Until the transaction ends no other process is past here; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


async def insert_rows(
    connection: AsyncConnection, table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """names: of the columns that every row fills, in its order."""
    if rows:
        await run(connection, insert(table), names, rows)


async def update_rows(
    connection: AsyncConnection, table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """rows: the values, and after them the `id` of the row that gets them."""
    if rows:
        await run(connection, update(table).where(table.c.id == bindparam(WHICH)), (*names, WHICH), rows)


async def run(
    connection: AsyncConnection, statement: Insert | Update, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(names))
    order = list(getattr(compiled, "positiontup", ()))
    given = list(rows) if order == list(names) else list(map(itemgetter(*map(names.index, order)), rows))
    await connection.exec_driver_sql(str(compiled), given)
