"""The index tables (places) of collections, which exist a little longer than the collections."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.tables import COLLECTIONS, COPIES
from proxy.wire.ids import new_id

NOT_MOVING: dict[str, str | int] = {"next_place": "", "next_model": "", "next_job": "", "next_dimensions": 0}
"""The column values of a collection that is not being moved."""


def shared_lock(which: ColumnElement[bool]) -> Select[tuple[str]]:
    """Take a shared lock on a collection until the transaction ends: nobody can move or remove it."""
    return select(COLLECTIONS.c.id).where(which & (COLLECTIONS.c.gone == 0)).with_for_update(read=True)


def exclusive_lock(id: str) -> Select[tuple[str]]:
    """Take an exclusive lock on an existing collection until the transaction ends."""
    return select(COLLECTIONS.c.id).where((COLLECTIONS.c.id == id) & (COLLECTIONS.c.gone == 0)).with_for_update()


async def schedule_deletion(connection: AsyncConnection, place: str, now: int) -> None:
    """Mark a place for deletion; searches that have already begun may still use it for a while."""
    id = new_id("col_")
    row = {"id": id, "owner": "", "name": id, "place": place, "gone": 1, "at": now}
    await connection.execute(insert(COLLECTIONS).values(row))


async def cancel_move(connection: AsyncConnection, collection: str, now: int) -> None:
    """Cancel the move of a collection, if there is one; it stays in its current place."""
    query = select(COLLECTIONS.c.next_place).where(COLLECTIONS.c.id == collection).with_for_update()
    place = (await connection.execute(query)).scalar_one_or_none()
    if place:
        await schedule_deletion(connection, place, now)
        await connection.execute(delete(COPIES).where(COPIES.c.place == place))
        await connection.execute(update(COLLECTIONS).where(COLLECTIONS.c.id == collection).values(**NOT_MOVING))
