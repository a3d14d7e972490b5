"""Deletes conversations: hides them at once, then removes their rows in small transactions, so nobody waits long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from sqlalchemy import ColumnElement, String, cast, delete, func, literal, select, update

from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, SUMMARIES, TALKS

NOBODY: Final = "\x01"
"""The owner of conversations that are being deleted or copied; no caller can have this name."""
CHUNK: Final = 50
"""Conversations whose rows are deleted together."""
MANY: Final = 1000
"""Conversations that are hidden in one transaction."""
ROWS: Final = 100
LETTERS: Final = 500_000
"""Limits of one transaction: ROWS messages with LETTERS characters, but at least one message.  Removing words from the
full-text index costs as much as adding them."""
PAUSE: Final = 0.01
"""Seconds between two transactions, to let others write."""
LEFT: Final = 3600 * 10**6
"""Microseconds after which a process that was deleting or copying a conversation is assumed to have crashed."""


async def remove(store: Store, which: ColumnElement[bool]) -> int:
    """Delete conversations; gives their number.  which: a condition on TALKS.

    If the caller is cancelled, the rows of the conversations hidden so far are still deleted.
    """
    whole = 0
    while True:
        numbers = await taken(store, which)
        whole += len(numbers)
        await asyncio.shield(store.host.background.start(emptied(store, numbers), "deleting conversations"))
        if len(numbers) < MANY:  # do not repeat until none is left: a new conversation may match by now
            return whole


async def taken(store: Store, which: ColumnElement[bool]) -> list[int]:
    """Hide up to MANY conversations from their owners; gives their numbers."""
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
    """Delete some rows of these conversations; gives whether nothing is left of them."""
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
    """How many of the first messages fit one transaction.  lengths: their characters."""
    count = whole = 0
    for length in islice(lengths, ROWS):
        whole += length
        if count and whole > LETTERS:
            break
        count += 1
    return count


async def remove_left(store: Store) -> None:
    """Delete what a crashed process has left half-deleted or half-copied."""
    await remove_hidden(store, TALKS.c.updated < store.now() - LEFT)


async def remove_hidden(store: Store, which: ColumnElement[bool]) -> None:
    """Delete hidden conversations: those being deleted or copied.  A copy in progress then fails."""
    hidden = select(TALKS.c.number).where(TALKS.c.owner == NOBODY, which).limit(MANY)
    while True:
        async with store.database.reading() as connection:
            numbers = list((await connection.execute(hidden)).scalars())
        await emptied(store, numbers)
        if len(numbers) < MANY:
            return
