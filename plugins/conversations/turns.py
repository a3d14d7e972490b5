"""Turns: only one call of a conversation is answered at a time, across all processes, by a lease in the database."""

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

from plugins.conversations.conversation import Conversation, Locked, conversation_of, unknown
from plugins.conversations.store import Store, owned
from plugins.conversations.tables import TALKS
from proxy.errors import Busy
from proxy.host import Background, Clock
from proxy.sql.now import now

log = logging.getLogger(__name__)
LEASE: Final = 15.0
"""Seconds after which a lease expires unless it is renewed, by the database's clock."""
PROLONGED: Final = int(LEASE * 1e6)
SOONEST: Final = 0.01
LATEST: Final = 0.25
"""Seconds between two attempts to get a lease that another process holds; the pause doubles up to LATEST."""
PER_STATEMENT: Final = 500
GIVING: Final = "giving back a turn in a conversation"


@dataclass(slots=True)
class WaitingQueue:
    """The queue of this process's calls for one conversation."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Turns:
    """The turns that this process holds or waits for; survives reloads."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], WaitingQueue] = {}
        self.held: dict[str, int] = {}
        """Number of the conversation by token of the turn."""
        self.renewing: asyncio.Task[None] | None = None
        self.writing: set[asyncio.Task[Any]] = set()
        """Pending writes, which must finish even if nobody waits for them."""

    def start(self, background: Background, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a write that shutdown waits for.  Raises Busy."""
        task = background.start(work, name)
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)
        return task

    async def written(self, patience: float) -> None:
        """Wait until all pending writes are done, for at most `patience` seconds."""
        if self.writing:
            await asyncio.wait(list(self.writing), timeout=patience)

    @asynccontextmanager
    async def queue(self, owner: str, id: str, most: int) -> AsyncIterator[asyncio.Lock]:
        """A place in the queue for a conversation.  Raises Locked if `most` calls are waiting already."""
        line = self.lines.setdefault((owner, id), WaitingQueue())
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
    """The exclusive right to continue a conversation until it is released.  token: identifies it in the database."""

    talk: Conversation
    token: str
    lock: asyncio.Lock
    turns: Turns
    fresh: bool = False
    """Whether the conversation was created for this turn."""

    def end(self) -> None:
        """Release the turn in this process; in the database, `released_columns` or `release_lease` does that."""
        self.turns.held.pop(self.token, None)
        self.lock.release()
        key = (self.talk.owner, self.talk.id)
        if (line := self.turns.lines.get(key)) is not None and line.lock is self.lock and not line.waiting:
            del self.turns.lines[key]


@dataclass(frozen=True, slots=True)
class TurnTaker:
    """Acquires turns.  wait: timeout in seconds; waiting: maximum length of a queue; create: whether an unknown
    conversation is created."""

    store: Store
    turns: Turns
    wait: float
    waiting: int
    create: bool

    async def turn(self, owner: str, id: str, create: bool | None = None) -> Turn:
        """Acquire a turn.  Raises Locked after `wait` seconds, NotFound, BadCall, Busy."""
        wanted, began = self.create if create is None else create, time.monotonic()
        async with self.turns.queue(owner, id, self.waiting) as lock:
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
        """A turn in an existing conversation, for the length of a `with` block."""
        turn = await self.turn(owner, id, False)
        try:
            yield turn
        finally:
            back = release_lease(self.store, owner, id, turn.token)
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
        except asyncio.CancelledError:  # the lease may have been written already
            self.turns.start(self.store.host.background, release_lease(self.store, owner, id, token), GIVING)
            raise
        talk, fresh = found
        self.turns.held[token] = talk.number
        return Turn(talk, token, lock, self.turns, fresh)

    async def tried(self, owner: str, id: str, token: str, create: bool) -> tuple[Conversation, bool] | None:
        """Try to get the lease: the conversation and whether it is new; None if another call holds it.

        Raises NotFound, BadCall.
        """
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

    async def taken(self, connection: AsyncConnection, owner: str, id: str, token: str) -> Conversation | None:
        free = (TALKS.c.holder == "") | (TALKS.c.held_until < now())
        lease = {"holder": token, "held_until": now() + PROLONGED}
        taken = update(TALKS).where(owned(owner, id), free).values(lease).returning(TALKS)
        row = (await connection.execute(taken)).mappings().first()
        return None if row is None else conversation_of(row)


async def release_lease(store: Store, owner: str, id: str, token: str) -> None:
    """Release a lease in the database."""
    holds = owned(owner, id) & (TALKS.c.holder == token)
    async with store.database.writing() as connection:
        await connection.execute(update(TALKS).where(holds).values(holder="", held_until=0))


def released_columns(token: str) -> dict[str, Any]:
    """Columns that release a lease; they change nothing if it has expired and another call holds it."""
    holds = TALKS.c.holder == token
    return {
        "holder": case((holds, ""), else_=TALKS.c.holder),
        "held_until": case((holds, 0), else_=TALKS.c.held_until),
    }


async def keep_renewing(turns: Turns, store: Store, clock: Clock) -> None:
    """Renew the leases of all turns held by this process, for as long as it runs."""
    while True:
        await clock.sleep(LEASE / 4)
        try:
            await renew_leases(turns, store)
        except Busy as error:  # the database may be back before the leases expire
            log.warning("leases of conversations cannot be renewed: %s", error)


async def renew_leases(turns: Turns, store: Store) -> None:
    held = list(turns.held.items())
    for start in range(0, len(held), PER_STATEMENT):
        some = held[start : start + PER_STATEMENT]
        which = TALKS.c.number.in_([number for _, number in some]) & TALKS.c.holder.in_([token for token, _ in some])
        # Rows locked by a write are skipped, so that waiting for one does not let the other leases expire.
        free = select(TALKS.c.number).where(which).with_for_update(skip_locked=True)
        async with store.database.writing() as connection:
            await connection.execute(update(TALKS).where(TALKS.c.number.in_(free)).values(held_until=now() + PROLONGED))
