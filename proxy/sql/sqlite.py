"""SQLite in a thread of its own, as SQLAlchemy's asyncio asks for it: one trip to the thread a statement.

A transaction that writes holds the only lock of its file through every wait for the event loop, and aiosqlite alone
waits four times a statement.
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
"""Seconds between two looks whether another process has given the lock back.  SQLite itself looks ten times a second in
the end, and hardly wins against a process that gives it back for a millisecond now and then."""


class Connection(aiosqlite.Connection):
    """path: of the file.  patience: seconds that it waits for another process."""

    def __init__(self, path: str, patience: float) -> None:
        # Statements run in the one thread only; cursors are made and forgotten outside.
        super().__init__(lambda: sqlite3.connect(path, timeout=patience, check_same_thread=False), 64)
        self.patience = patience
        self.until = float("inf")
        """On the monotonic clock: until when it waits for the lock of a transaction that may write."""
        self.used = False
        """Whether anything was sent to the thread since the last transaction ended, be it done yet or not."""
        self._thread.daemon = True
        self.stopping = False

    def stop(self) -> asyncio.Future[Any] | None:
        """Once: whoever closes it after it was ended by force would wait for ever for a thread that has ended, and a
        server that stops with it.  SQLAlchemy does both to a connection whose statement is cut off."""
        if self.stopping:
            return None
        self.stopping = True
        ended: asyncio.Future[Any] | None = super().stop()
        return ended

    async def close(self) -> None:
        if not self.stopping:
            await super().close()

    def terminate(self) -> None:
        """Nobody is told when it has ended: the event loop may be gone by then, and the thread would fail."""
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
        """Waits for its thread, which else tells an event loop of its last statement that may be gone by then."""
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, patience)

    def cursor(self) -> Cursor:  # type: ignore[override]  # what that gives is awaited, as this may be
        return Cursor(self, self._conn.cursor())

    async def run(self, statement: Any, *values: Any) -> None:
        self.used = True
        await self._execute(statement, *values)  # type: ignore[no-untyped-call]

    async def commit(self) -> None:
        await super().commit()
        self.used = False

    async def rollback(self) -> None:
        if self.used:  # SQLAlchemy rolls back whatever goes back into its pool
            await super().rollback()
            self.used = False


class Cursor:
    """Has read all rows once `execute` is over."""

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
        """Nothing is open: all was read."""

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
    """Begins a transaction that may write.  patience: seconds that later statements wait.

    Raises OperationalError once it is late.
    """
    cursor.execute("PRAGMA busy_timeout = 0").fetchall()  # it says what it was, and is not over until that is heard
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
