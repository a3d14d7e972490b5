"""Reads many rows page by page, with a turn for the event loop between pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select

from proxy.sql.database import Database

ROWS: Final = 2000
"""Rows per page."""


async def paged(database: Database, query: Select[Any], key: ColumnElement[str]) -> AsyncIterator[Sequence[Any]]:
    """All rows of a query, ordered by `key`, which must be its first column and unique."""
    last: str | None = None
    while True:
        some = query if last is None else query.where(key > last)
        async with database.reading() as connection:
            rows = (await connection.execute(some.order_by(key).limit(ROWS))).all()
        if rows:
            yield rows
        if len(rows) < ROWS:
            return
        last = rows[-1][0]
        await asyncio.sleep(0)
