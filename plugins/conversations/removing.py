"""Conversations go at once for their owner, and a little at a time from the database: nobody else waits for it long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from sqlalchemy import ColumnElement, String, cast, delete, func, literal, select, update

from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, SUMMARIES, TALKS

NOBODY: Final = "\x01"
"""The owner of what is going, or not there yet: no caller's name."""
CHUNK: Final = 50
"""Conversations that are emptied together."""
MANY: Final = 1000
"""Conversations that are taken from their owner at once."""
ROWS: Final = 100
LETTERS: Final = 500_000
"""Messages that go at once, and letters of all but the first: to take words out of their index costs as much as to put
them in."""
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
    some = select(MESSAGES.c.number, func.length(MESSAGES.c.text)).where(MESSAGES.c.talk.in_(numbers)).limit(ROWS)
    async with store.database.reading() as connection:
        there = (await connection.execute(some)).all()
    going = there[: together(length for _, length in there)]
    async with store.database.writing() as connection:
        await connection.execute(delete(MESSAGES).where(MESSAGES.c.number.in_([number for number, _ in going])))
        if len(going) < len(there) or len(there) == ROWS:
            return False
        await connection.execute(delete(SUMMARIES).where(SUMMARIES.c.talk.in_(numbers)))
        await connection.execute(delete(TALKS).where(TALKS.c.number.in_(numbers)))
    return True


def together(lengths: Iterable[int]) -> int:
    """How many of the first messages, of so many letters, are one bit."""
    count = whole = 0
    for length in islice(lengths, ROWS):
        whole += length
        if count and whole > LETTERS:
            break
        count += 1
    return count


async def remove_left(store: Store) -> None:
    """What a process that died had begun to remove, or to make."""
    await remove_hidden(store, TALKS.c.updated < store.now() - LEFT)


async def remove_hidden(store: Store, which: ColumnElement[bool]) -> None:
    """What has gone for its owner already, or is not there yet; whoever is at it finds it gone."""
    hidden = select(TALKS.c.number).where(TALKS.c.owner == NOBODY, which).limit(MANY)
    while True:
        async with store.database.reading() as connection:
            numbers = list((await connection.execute(hidden)).scalars())
        await emptied(store, numbers)
        if len(numbers) < MANY:
            return
