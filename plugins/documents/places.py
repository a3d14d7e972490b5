"""Where in the index collections are: their tables there, which outlive them for a while."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.tables import COLLECTIONS, COPIES
from proxy.wire.ids import new_id

STILL: dict[str, str | int] = {"next_place": "", "next_model": "", "next_job": "", "next_dimensions": 0}
"""Of a collection that does not move."""


def held(which: ColumnElement[bool]) -> Select[tuple[str]]:
    """A collection that stays as it is until the transaction is over; others may hold it, too, but nobody move it."""
    return select(COLLECTIONS.c.id).where(which & (COLLECTIONS.c.gone == 0)).with_for_update(read=True)


def locked(id: str) -> Select[tuple[str]]:
    """A collection that is there, and that nobody else holds or changes until the transaction is over."""
    return select(COLLECTIONS.c.id).where((COLLECTIONS.c.id == id) & (COLLECTIONS.c.gone == 0)).with_for_update()


async def retire(connection: AsyncConnection, place: str, now: int) -> None:
    """Nobody will search there any more, but those who do now."""
    id = new_id("col_")
    row = {"id": id, "owner": "", "name": id, "place": place, "gone": 1, "at": now}
    await connection.execute(insert(COLLECTIONS).values(row))


async def abandon(connection: AsyncConnection, collection: str, now: int) -> None:
    """It moves no more, and stays where it is."""
    query = select(COLLECTIONS.c.next_place).where(COLLECTIONS.c.id == collection).with_for_update()
    place = (await connection.execute(query)).scalar_one_or_none()
    if place:
        await retire(connection, place, now)
        await connection.execute(delete(COPIES).where(COPIES.c.place == place))
        await connection.execute(update(COLLECTIONS).where(COLLECTIONS.c.id == collection).values(**STILL))
