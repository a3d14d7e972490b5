"""Writes concurrent answers in one transaction: one transaction each costs ten times as much."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import insert

from plugins.stored.answers import labels_of
from plugins.stored.tables import ANSWERS, LABELS
from proxy.errors import Busy
from proxy.host import Host
from proxy.types import JSON

TOGETHER: Final = 64
"""Maximum rows per transaction."""


@dataclass(slots=True, eq=False)
class New:
    """A row to insert, and the metadata by which it can be searched.  there: done once it is written."""

    row: Mapping[str, Any]
    labels: JSON
    there: asyncio.Future[None]


class Adding:
    """`add` returns once the row is written, so that every process can read it at once.

    Only one transaction runs at a time; rows that arrive meanwhile go into the next one.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.waiting: list[New] = []
        self.task: asyncio.Task[None] | None = None
        self.look: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The write in progress, if any."""
        return {self.task} if self.task is not None and not self.task.done() else set()

    async def ready(self) -> None:
        """Check that the database answers; concurrent callers share one check.  Raises DatabaseAway."""
        if self.look is None or self.look.done():
            self.look = self.host.background.start(self.reached(), "looking for the database")
        try:
            await asyncio.shield(self.look)
        except Busy as error:
            raise error.copied() from error

    async def reached(self) -> None:
        async with self.host.database.reading():
            pass

    async def add(self, row: Mapping[str, Any], labels: JSON) -> None:
        """Write a row, even if the caller is cancelled meanwhile.  Raises Busy."""
        if self.task is None or self.task.done():
            self.task = self.host.background.start(self.run(), "keeping answers")
        new = New(row, labels, asyncio.get_running_loop().create_future())
        self.waiting.append(new)
        await new.there

    async def run(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting[:TOGETHER], self.waiting[TOGETHER:]
            try:
                await self.write(batch)
            except BaseException:  # the server is shutting down
                for new in (*batch, *self.waiting):
                    new.there.cancel()
                raise

    async def write(self, batch: Sequence[New]) -> None:
        try:
            await self.put(batch)
        except Busy as error:
            fail(batch, error)
        except Exception as error:
            if len(batch) == 1:
                fail(batch, error)
            else:  # a row that the database rejects must not keep the others from being written
                for new in batch:
                    await self.write([new])
        else:
            for new in batch:
                if not new.there.done():
                    new.there.set_result(None)

    async def put(self, batch: Sequence[New]) -> None:
        labels = [label for new in batch for label in labelled(new.row["id"], new.labels)]
        async with self.host.database.writing() as connection:
            await connection.execute(insert(ANSWERS), [{**new.row} for new in batch])
            if labels:
                await connection.execute(insert(LABELS), labels)


def labelled(id: str, metadata: JSON) -> list[dict[str, str]]:
    """The rows for the metadata of an answer."""
    return [{"answer": id, "name": name, "value": value} for name, value in labels_of(metadata)]


def fail(batch: Sequence[New], error: Exception) -> None:
    for new in batch:
        if not new.there.done():
            new.there.set_exception(error.copied() if isinstance(error, Busy) else error)
