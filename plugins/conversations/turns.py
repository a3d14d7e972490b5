"""Whose turn it is: of the calls of one conversation one is answered at a time, whichever process it came to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import case, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.conversations.store import Store, mine
from plugins.conversations.tables import TALKS
from plugins.conversations.talks import Locked, Talk, talk_of, unknown
from proxy.errors import Busy
from proxy.host import Background, Clock
from proxy.sql.now import now

log = logging.getLogger(__name__)
LEASE: Final = 15.0
"""Seconds after which a turn is over whose process does not say that it goes on, by the database's clock."""
PROLONGED: Final = int(LEASE * 1e6)
SOONEST: Final = 0.01
LATEST: Final = 0.25
"""Seconds between two looks whether another process's turn is over."""
PER_STATEMENT: Final = 500
GIVING: Final = "giving back a turn in a conversation"


@dataclass(slots=True)
class Line:
    """Calls of this process that wait for one conversation."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Turns:
    """What this process holds and waits for; outlives reloads."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Line] = {}
        self.held: dict[str, int] = {}
        """By token the number of its conversation."""
        self.renewing: asyncio.Task[None] | None = None
        self.writing: set[asyncio.Task[Any]] = set()
        """What must be written though nobody waits for it."""

    def start(self, background: Background, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Raises Busy."""
        task = background.start(work, name)
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)
        return task

    async def written(self, patience: float) -> None:
        """Wait until all is, or so many seconds."""
        if self.writing:
            await asyncio.wait(list(self.writing), timeout=patience)

    @asynccontextmanager
    async def line(self, owner: str, id: str, most: int) -> AsyncIterator[asyncio.Lock]:
        """A place among those who wait, in their order.  Raises Locked where `most` wait already."""
        line = self.lines.setdefault((owner, id), Line())
        if line.waiting >= most and line.lock.locked():
            raise Locked(id, 1.0)
        line.waiting += 1
        try:
            yield line.lock
        finally:
            line.waiting -= 1
            if not line.waiting and not line.lock.locked():
                self.lines.pop((owner, id), None)


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to go on with a conversation, held until it is given back.  token: names it in the database."""

    talk: Talk
    token: str
    lock: asyncio.Lock
    turns: Turns
    fresh: bool = False
    """Whether the conversation began with it."""

    def end(self) -> None:
        """Here; in the database it ends with the last write, see `ended`."""
        self.turns.held.pop(self.token, None)
        self.lock.release()
        key = (self.talk.owner, self.talk.id)
        if (line := self.turns.lines.get(key)) is not None and line.lock is self.lock and not line.waiting:
            del self.turns.lines[key]


@dataclass(frozen=True, slots=True)
class Taking:
    """How a turn is taken.  wait: seconds; waiting: calls of one conversation; create: what is not there yet."""

    store: Store
    turns: Turns
    wait: float
    waiting: int
    create: bool

    async def turn(self, owner: str, id: str, create: bool | None = None) -> Turn:
        """Raises Locked after `wait` seconds, NotFound, BadCall, Busy."""
        wanted, began = self.create if create is None else create, time.monotonic()
        async with self.turns.line(owner, id, self.waiting) as lock:
            try:
                async with asyncio.timeout(self.wait):
                    await lock.acquire()
            except TimeoutError:
                raise Locked(id, 1.0) from None
            try:
                return await self.leased(owner, id, wanted, lock, began + self.wait)
            except BaseException:
                lock.release()
                raise

    @asynccontextmanager
    async def held(self, owner: str, id: str) -> AsyncIterator[Turn]:
        """A turn in a conversation that is there, for what is done at once."""
        turn = await self.turn(owner, id, False)
        try:
            yield turn
        finally:
            back = given_back(self.store, owner, id, turn.token)
            try:
                await asyncio.shield(self.turns.start(self.store.host.background, back, GIVING))
            finally:
                turn.end()

    async def leased(self, owner: str, id: str, create: bool, lock: asyncio.Lock, deadline: float) -> Turn:
        token, pause = uuid4().hex, SOONEST
        try:
            while (found := await self.tried(owner, id, token, create)) is None:
                if time.monotonic() > deadline:
                    raise Locked(id, 1.0)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LATEST)
        except asyncio.CancelledError:  # it may have been written already
            self.turns.start(self.store.host.background, given_back(self.store, owner, id, token), GIVING)
            raise
        talk, fresh = found
        self.turns.held[token] = talk.number
        return Turn(talk, token, lock, self.turns, fresh)

    async def tried(self, owner: str, id: str, token: str, create: bool) -> tuple[Talk, bool] | None:
        """The conversation, if nobody else holds it, and whether it is new.  Raises NotFound."""
        async with self.store.database.writing() as connection:
            talk = await self.taken(connection, owner, id, token)
            if talk is not None:
                return talk, False
            if await self.store.found(connection, owner, id) is not None:
                return None
            if not create:
                raise unknown(id)
            await self.store.check_room(connection, owner)
            await self.store.made(connection, owner, id)
            talk = await self.taken(connection, owner, id, token)
            return None if talk is None else (talk, True)

    async def taken(self, connection: AsyncConnection, owner: str, id: str, token: str) -> Talk | None:
        free = (TALKS.c.holder == "") | (TALKS.c.held_until < now())
        lease = {"holder": token, "held_until": now() + PROLONGED}
        taken = update(TALKS).where(mine(owner, id), free).values(lease).returning(TALKS)
        row = (await connection.execute(taken)).mappings().first()
        return None if row is None else talk_of(row)


async def given_back(store: Store, owner: str, id: str, token: str) -> None:
    """Others may have it."""
    holds = mine(owner, id) & (TALKS.c.holder == token)
    async with store.database.writing() as connection:
        await connection.execute(update(TALKS).where(holds).values(holder="", held_until=0))


def released(token: str) -> dict[str, Any]:
    """What changes in a conversation when a turn in it is given back; nothing where it was over already."""
    holds = TALKS.c.holder == token
    return {
        "holder": case((holds, ""), else_=TALKS.c.holder),
        "held_until": case((holds, 0), else_=TALKS.c.held_until),
    }


async def renewing(turns: Turns, store: Store, clock: Clock) -> None:
    """Says of every turn that is held that it goes on, as long as this process lives."""
    while True:
        await clock.sleep(LEASE / 4)
        try:
            await renewed(turns, store)
        except Busy as error:  # the database may be back before the turns are over
            log.warning("leases of conversations cannot be renewed: %s", error)


async def renewed(turns: Turns, store: Store) -> None:
    held = list(turns.held.items())
    for start in range(0, len(held), PER_STATEMENT):
        some = held[start : start + PER_STATEMENT]
        which = TALKS.c.number.in_([number for _, number in some]) & TALKS.c.holder.in_([token for token, _ in some])
        # A row that is locked is being written to; the other turns must not end while that takes.
        free = select(TALKS.c.number).where(which).with_for_update(skip_locked=True)
        async with store.database.writing() as connection:
            await connection.execute(update(TALKS).where(TALKS.c.number.in_(free)).values(held_until=now() + PROLONGED))
