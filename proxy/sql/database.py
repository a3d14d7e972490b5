"""One database, SQLite or PostgreSQL, through SQLAlchemy Core."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Connection, Table, event, exc, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from proxy.availability import Availability
from proxy.errors import Busy, ConfigError
from proxy.sql.feature import Feature
from proxy.sql.lockfile import lock_file
from proxy.sql.postgres import STATEMENT, leave, noting, passes

DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
INSERT: Final = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
log = logging.getLogger(__name__)
WRITES: Final = "writes"
LASTS: Final = "lasts"
UNTIL: Final = "until"
PRAGMAS: Final = ("synchronous = NORMAL", "foreign_keys = ON")
logging.getLogger("aiosqlite").setLevel(logging.INFO)  # at debug level it logs every value, also secrets
CLOSED: Final = "it was closed"
SAY: Final = 60.0
"""Minimum seconds between two log lines while a database is unavailable."""


class DatabaseAway(Busy):
    """The database does not answer at the moment.

    Only `why`, for the operator, says which database and what happened; clients do not see this.
    """

    def __init__(self, why: str) -> None:
        super().__init__("The database does not answer.", code="database_unavailable", wait=5.0)
        self.whole = why

    @property
    def why(self) -> str:
        return self.whole


def first_line(error: BaseException) -> str:
    told = getattr(error, "orig", None) or error
    return (str(told) or type(told).__name__).partition("\n")[0]


class Database:
    """A database.  url: as configured, without a driver.  Every method that accesses it may raise DatabaseAway."""

    def __init__(self, url: str, connections: int, timeout: float) -> None:
        self.url = make_url(url)
        self.name = self.url.render_as_string(hide_password=True)
        self.dialect = self.url.get_backend_name()
        self.timeout = timeout
        self.made: WeakSet[Any] = WeakSet()
        """The connections that are still open."""
        self.closed = False
        self.engine = self.opened(connections)
        # With autocommit, a read takes one round trip to PostgreSQL, without BEGIN and COMMIT around it.
        alone = {} if self.dialect == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self.reader = self.engine.execution_options(**alone)
        self.said = float("-inf")
        self.availability = Availability()
        self.migrated: set[str] = set()
        self.migrating = asyncio.Lock()
        # SQLite allows one writer at a time; those of this process queue here instead of polling for SQLite's lock.
        self.turn = asyncio.Lock()

    def opened(self, connections: int) -> AsyncEngine:
        """The engine, with a pool of this many connections."""
        driver: URL = self.url.set(drivername=DRIVERS[self.dialect])
        sizes: dict[str, Any] = {"pool_size": connections, "max_overflow": 0, "pool_timeout": self.timeout}
        sizes["hide_parameters"] = True  # errors are logged, and the values may be secret
        if self.dialect == "sqlite":
            engine = create_async_engine(driver, async_creator=self.lite, **sizes)
            event.listen(engine.sync_engine, "connect", set_up)
            event.listen(engine.sync_engine, "begin", begin)
            return engine
        patience = {"timeout": self.timeout, "command_timeout": STATEMENT, "connection_class": noting(self.made)}
        told = {**patience, "async_creator_fn": self.connected}
        engine = create_async_engine(driver, connect_args=told, pool_pre_ping=True, **sizes)
        event.listen(engine.sync_engine, "handle_error", leave)
        return engine

    def lite(self) -> Any:
        from proxy.sql.sqlite import Connection as Lite

        if self.closed:
            raise ConnectionError(CLOSED)
        made = Lite(self.url.database or "", self.timeout)
        self.made.add(made)
        return made

    async def connected(self, **told: Any) -> Any:
        """A connection to PostgreSQL.  One that is only made when this database is already closed is closed, too."""
        import asyncpg

        made = await asyncpg.connect(**told)
        if self.closed:
            made.terminate()
            raise ConnectionError(CLOSED)
        return made

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn errors that mean an unavailable database into DatabaseAway; other errors pass unchanged."""
        try:
            yield
            self.availability.note(up=True)
        except (OSError, TimeoutError, exc.TimeoutError, exc.InterfaceError, exc.OperationalError) as error:
            raise self.gone("does not answer", error) from error
        except exc.DBAPIError as error:
            if not error.connection_invalidated and not passes(error):
                raise
            raise self.gone("has gone", error) from error
        except Exception as error:
            if not type(error).__module__.startswith("asyncpg"):  # its own errors, while PostgreSQL starts or stops
                raise
            raise self.gone("does not answer", error) from error

    def gone(self, how: str, error: BaseException) -> DatabaseAway:
        """The error to raise.  It is also logged, because clients do not see the details."""
        self.availability.note(up=False)
        why = f"The database {self.name} {how}: {first_line(error)}"
        if (now := time.monotonic()) - self.said >= SAY:
            self.said = now
            log.warning("%s", why)
        return DatabaseAway(why)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading.  Each statement sees a consistent state; in SQLite, all of them see the same."""
        with self.watched():
            async with AsyncExitStack() as stack:
                async with self.reached(time.monotonic() + self.timeout):
                    connection = await stack.enter_async_context(self.reader.connect())
                yield connection

    @asynccontextmanager
    async def writing(self, lasting: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed when the block is left and rolled back if it raises.

        lasting: a commit survives a power failure; with SQLite this means waiting for the disk.
        """
        until = time.monotonic() + self.timeout
        with self.watched():
            async with self.in_turn(until), AsyncExitStack() as stack:
                async with self.reached(until):
                    connection = await stack.enter_async_context(self.engine.connect())
                    await connection.execution_options(**{WRITES: True, LASTS: lasting, UNTIL: until})
                    if self.dialect != "sqlite":
                        await stack.enter_async_context(connection.begin())
                if self.dialect == "sqlite":  # its thread waits for the lock, with the same time limit
                    await stack.enter_async_context(connection.begin())
                yield connection

    @asynccontextmanager
    async def reached(self, until: float) -> AsyncIterator[None]:
        """Limit the time of everything before the first statement.  This includes the statement that checks a pooled
        connection: if the server is silent, it would otherwise take as long as the longest statement may."""
        try:
            async with asyncio.timeout(until - time.monotonic()):
                yield
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no answer within {self.timeout:g} seconds") from error

    @asynccontextmanager
    async def in_turn(self, until: float) -> AsyncIterator[None]:
        """Wait for this process's turn to write to SQLite, with the same time limit as for other processes.  Without
        one, a task behind many others that all fail would wait for the sum of their times."""
        if self.dialect != "sqlite":
            yield
            return
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self.turn.acquire()
        except TimeoutError:
            raise TimeoutError(f"other processes that write did not finish within {self.timeout:g} seconds") from None
        try:
            yield
        finally:
            self.turn.release()

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """A lock between processes, by name.  It may be held for long, because it does not block other writers."""
        async with AsyncExitStack() as stack:
            if self.dialect == "postgresql":
                connection = await stack.enter_async_context(self.writing())
                lock = zlib.crc32(f"gemmapy-proxy alone {name}".encode())
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
            else:  # SQLite's only write lock would block all writers
                with self.watched():
                    await stack.enter_async_context(lock_file(f"{self.url.database}-alone"))
            yield

    def insert(self, table: Table) -> Any:
        """An INSERT of the dialect's own class, which supports ON CONFLICT, with the same methods in both dialects."""
        return INSERT[self.dialect](table)

    async def migrate(self, feature: Feature) -> None:
        """Bring the feature's tables up to date, once per process; of several processes, one does it, others wait."""
        from proxy.sql.migrations import is_newest, upgrade  # imports Alembic, which takes time

        async with self.migrating:
            if feature.name not in self.migrated:
                if self.dialect == "sqlite":
                    self.make_file()
                with self.checked():
                    async with self.reading() as connection:  # a starting server must not block those that write
                        there = await connection.run_sync(is_newest, feature)
                if not there:
                    async with self.writing() as connection:
                        await connection.run_sync(upgrade, feature)
                self.migrated.add(feature.name)

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Raises ConfigError if the file is not an SQLite database, or is damaged."""
        try:
            yield
        except exc.DatabaseError as error:
            if type(error) is not exc.DatabaseError:  # its subclasses mean other faults
                raise
            raise ConfigError([f"the database {self.name} cannot be used: {first_line(error)}"]) from error

    def make_file(self) -> None:
        """Create SQLite's file.  Raises ConfigError if it cannot be written, because waiting would not help.

        An existing file is not opened, because closing it again would release every lock that SQLite has on it in this
        process.  Another process that then opens and closes the database would believe to be the last one and delete
        the log that this one still uses, and everything written afterwards would be lost.
        Source: sqlite.org/howtocorrupt.html, 2.2.
        """
        path = Path(self.url.database or "")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.touch()
            for one in (path, path.parent):  # SQLite's log is in the same folder
                if not (os.access(one, os.W_OK) and path.is_file()):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(one))
        except OSError as error:
            why = f"{error.filename}: {error.strerror}; set `database: {{url: …}}`, or do without a database"
            raise ConfigError([f"the database {path.absolute()} cannot be written: {why}"]) from error

    async def aclose(self) -> None:
        """Close all connections, also those still in use, which SQLAlchemy would leave open."""
        self.closed = True
        try:
            await self.engine.dispose()
        finally:  # also if this is cancelled
            for one in (left := list(self.made)):
                one.terminate()
        if self.dialect == "sqlite":
            await asyncio.gather(*(one.ended(self.timeout) for one in left))


def set_up(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin only explicitly, and include DDL
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    # This mode is stored in the file.  SQLite does not wait for the lock it needs here; a process that holds the lock
    # sets the same mode.
    with suppress(connection.dbapi.OperationalError):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def begin(connection: Connection) -> None:
    # Writers take the lock at once: a transaction that reads first fails if another one writes before it does.
    options = connection.get_execution_options()
    writes = options.get(WRITES)
    if writes and connection.info.get(LASTS, False) != options.get(LASTS, False):
        connection.info[LASTS] = options[LASTS]
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options[LASTS] else 'NORMAL'}")
    if writes:
        lite: Any = connection.connection.driver_connection
        lite.until = options[UNTIL]
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


Opener = Callable[[], Database]
