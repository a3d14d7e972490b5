"""SQLite in a thread of its own, for SQLAlchemy's asyncio, with one round trip to the thread per statement.

A writing transaction holds the file's only write lock while it waits for the event loop, and plain aiosqlite waits four
times per statement.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import warnings
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final, Self

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

WRITE: Final = "BEGIN IMMEDIATE"
LOOK: Final = 0.003
"""Seconds between two tries to get the write lock.  SQLite itself ends up trying ten times a second, and hardly wins
against a process that releases the lock only for a millisecond now and then."""


class Connection(aiosqlite.Connection):
    """path: of the file.  patience: seconds to wait for another process."""

    def __init__(self, path: str, patience: float) -> None:
        # Statements run only in the one thread, but cursors are created and dropped outside of it.
        super().__init__(lambda: sqlite3.connect(path, timeout=patience, check_same_thread=False), 64)
        self.patience = patience
        self.until = float("inf")
        """Until when a writing transaction waits for the lock, in monotonic seconds."""
        self.used = False
        """Whether anything was sent to the thread since the last transaction ended."""
        self._thread.daemon = True
        self.stopping = False

    def stop(self) -> asyncio.Future[Any] | None:
        """Stop the thread, only once.  If a statement is cancelled, SQLAlchemy terminates the connection and closes it
        too, and the second of these would wait forever for a thread that has ended."""
        if self.stopping:
            return None
        self.stopping = True
        ended: asyncio.Future[Any] | None = super().stop()
        return ended

    async def close(self) -> None:
        if not self.stopping:
            await super().close()

    def terminate(self) -> None:
        """Stop the thread without a callback when it has ended, because the event loop may be closed by then."""
        if not self.stopping:
            self.stopping, self._running = True, False
            self._tx.put_nowait((None, self.let_go))

    def __del__(self) -> None:
        if self._connection is not None and not self.stopping:
            warnings.warn(f"{self!r} was deleted before being closed", ResourceWarning, stacklevel=1)
            self.terminate()

    def let_go(self) -> object:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return _STOP_RUNNING_SENTINEL

    async def ended(self, patience: float) -> None:
        """Wait for the thread, because it reports its last statement to the event loop, which must still be running."""
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, patience)

    def cursor(self) -> Cursor:  # type: ignore[override]  # the original's result is awaited, and so can this one be
        return Cursor(self, self._conn.cursor())

    async def run(self, statement: Any, *values: Any) -> None:
        self.used = True
        await self._execute(statement, *values)  # type: ignore[no-untyped-call]

    async def commit(self) -> None:
        await super().commit()
        self.used = False

    async def rollback(self) -> None:
        if self.used:  # SQLAlchemy rolls back every connection that returns to its pool, even if there is nothing to do
            await super().rollback()
            self.used = False


class Cursor:
    """A cursor whose `execute` reads all rows at once."""

    arraysize = 1

    def __init__(self, connection: Connection, cursor: sqlite3.Cursor) -> None:
        self.connection = connection
        self.cursor = cursor
        self.rows: Sequence[Any] = ()

    async def __aenter__(self) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def execute(self, statement: str, values: Iterable[Any] = ()) -> None:
        await self.connection.run(self.executed, statement, values)

    def executed(self, statement: str, values: Any) -> None:
        if statement == WRITE:
            return locked(self.cursor, self.connection.until, self.connection.patience)
        self.cursor.execute(statement, values)
        self.rows = self.cursor.fetchall() if self.cursor.description else ()

    async def executemany(self, statement: str, values: Iterable[Any]) -> None:
        await self.connection.run(self.cursor.executemany, statement, values)

    async def fetchall(self) -> Sequence[Any]:
        return self.rows

    async def close(self) -> None:
        """Does nothing, because all rows have been read."""

    @property
    def description(self) -> Any:
        return self.cursor.description

    @property
    def rowcount(self) -> int:
        return self.cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self.cursor.lastrowid


def locked(cursor: sqlite3.Cursor, until: float, patience: float) -> None:
    """Begin a transaction that may write.  until: monotonic seconds.  patience: seconds that later statements wait.

    Raises OperationalError if the lock is not free by then.
    """
    cursor.execute("PRAGMA busy_timeout = 0").fetchall()  # it returns a row, which must be read to complete it
    try:
        while True:
            try:
                cursor.execute(WRITE)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(LOOK)
            else:
                return
    finally:
        cursor.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}").fetchall()
