"""Conversations go at once for their owner, and a little at a time from the database: nobody else waits for it long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, String, cast, delete, literal, select, update

from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, SUMMARIES, TALKS

NOBODY: Final = "\x01"
"""The owner of what is going, or not there yet: no caller's name."""
CHUNK: Final = 50
"""Conversations that are emptied together."""
MANY: Final = 1000
"""Conversations that are taken from their owner at once."""
ROWS: Final = 100
"""Messages that go at once: to take one out of the index of words costs as much as to put it in."""
PAUSE: Final = 0.01
"""Seconds in which others write."""
LEFT: Final = 3600 * 10**6
"""Microseconds after which whoever was removing a conversation is thought to have died."""


async def remove(store: Store, which: ColumnElement[bool]) -> int:
    """How many conversations that were.  which: a condition on TALKS.

    What has gone for its owner goes from the database even if whoever waits for it leaves.
    """
    whole = 0
    while True:
        numbers = await taken(store, which)
        whole += len(numbers)
        await asyncio.shield(store.host.background.start(emptied(store, numbers), "deleting conversations"))
        if len(numbers) < MANY:  # another of the same name may have begun by now
            return whole


async def taken(store: Store, which: ColumnElement[bool]) -> list[int]:
    some = TALKS.c.number.in_(select(TALKS.c.number).where(which).limit(MANY))
    name = literal("gone_") + cast(TALKS.c.number, String)
    gone = {"owner": NOBODY, "id": name, "updated": store.now(), "holder": "", "held_until": 0}
    async with store.database.writing() as connection:
        found = await connection.execute(update(TALKS).where(some, which).values(gone).returning(TALKS.c.number))
        return list(found.scalars())


async def emptied(store: Store, numbers: Sequence[int]) -> None:
    for start in range(0, len(numbers), CHUNK):
        while not await fewer(store, numbers[start : start + CHUNK]):
            await store.host.clock.sleep(PAUSE)


async def fewer(store: Store, numbers: Sequence[int]) -> bool:
    """Whether nothing is left of these conversations."""
    some = select(MESSAGES.c.number).where(MESSAGES.c.talk.in_(numbers)).limit(ROWS)
    async with store.database.writing() as connection:
        gone = await connection.execute(delete(MESSAGES).where(MESSAGES.c.number.in_(some)))
        if gone.rowcount == ROWS:
            return False
        await connection.execute(delete(SUMMARIES).where(SUMMARIES.c.talk.in_(numbers)))
        await connection.execute(delete(TALKS).where(TALKS.c.number.in_(numbers)))
    return True


async def remove_left(store: Store) -> None:
    """What a process that died had begun to remove, or to make."""
    left = (TALKS.c.owner == NOBODY) & (TALKS.c.updated < store.now() - LEFT)
    async with store.database.reading() as connection:
        numbers = list((await connection.execute(select(TALKS.c.number).where(left).limit(MANY))).scalars())
    await emptied(store, numbers)
