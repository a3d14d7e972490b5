"""The texts of document versions in the database."""

from __future__ import annotations

from sqlalchemy import insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.contents import Content
from plugins.documents.tables import PARTS


async def put_parts(connection: AsyncConnection, item: str, version: int, content: Content) -> None:
    start = 0
    for number, part in enumerate(content.parts()):
        row = {"item": item, "version": version, "part": number, "start": start, "content": part}
        await connection.execute(insert(PARTS).values(row))
        start += len(part)


async def copy_parts(connection: AsyncConnection, item: str, version: int, onto: int) -> None:
    columns = ("item", "version", "part", "start", "content")
    kept = select(PARTS.c.item, literal(onto), PARTS.c.part, PARTS.c.start, PARTS.c.content)
    these = kept.where((PARTS.c.item == item) & (PARTS.c.version == version))
    await connection.execute(insert(PARTS).from_select(columns, these))


async def renumber(connection: AsyncConnection, item: str, failed: int) -> int:
    """Give a failed version the next number before it is retried, and return that.

    A process that is still removing the failed version from the index then does not remove the new rows.
    """
    parts = (PARTS.c.item == item) & (PARTS.c.version == failed)
    await connection.execute(update(PARTS).where(parts).values(version=failed + 1))
    return failed + 1
