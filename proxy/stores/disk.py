"""A key-value store in an SQLite file: it survives restarts, and several processes may share it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from proxy.availability import Availability
from proxy.clock import Clock
from proxy.stores.breaker import Breaker
from proxy.stores.keyvalue import Entry, NewValue, StoredValue, StoreError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

OVERHEAD: Final = 300
"""Approximate bytes of a row besides its key, label and value."""
ROOM: Final = 0.9
"""Share of the maximum size to which eviction reduces the store, so that not every new value needs an eviction."""
BATCH: Final = 500
"""Rows read at once by `entries`, and keys in one statement."""
BUSY: Final = 0.2
"""Seconds to wait for another process that writes."""
PATIENCE: Final = 1.0
"""Seconds that one operation may take; after several failures the breaker stops using the store for a while."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS kept (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, label BLOB NOT NULL, size INTEGER NOT NULL,
    born REAL NOT NULL, expires REAL NOT NULL, used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS kept_used ON kept (used);
CREATE INDEX IF NOT EXISTS kept_expires ON kept (expires);
CREATE TABLE IF NOT EXISTS total (size INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS kept_added AFTER INSERT ON kept BEGIN UPDATE total SET size = size + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS kept_gone AFTER DELETE ON kept BEGIN UPDATE total SET size = size - OLD.size; END;
"""


class Disk:
    """most: maximum bytes of all entries together; the file may be a quarter larger.

    SQLite blocks, so all of its work is done in one separate thread.
    """

    def __init__(self, path: str, most: int, clock: Clock) -> None:
        self.path = Path(path)
        self.most = most
        self.clock = clock
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="disk store")
        self.opened: sqlite3.Connection | None = None
        self.file = 0
        """The inode of the open file, because other processes may replace the file."""
        self.closed = False
        self.availability = Availability()
        self.breaker = Breaker(path, PATIENCE, clock, self.availability)
        self.touched: dict[str, float] = {}
        """When keys were last read; written together with the next value."""

    async def do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` in the thread, in a transaction.  Raises StoreError."""
        if self.closed:
            raise StoreError(f"{self.path} is closed")
        return await self.breaker.do(self.in_thread(work))

    async def in_thread(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.thread, lambda: self.done(work))

    def done(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` in a transaction; called in the thread.  A damaged file is replaced for the next operation."""
        if self.closed:
            raise StoreError(f"{self.path} is closed")
        if self.opened is None:
            self.opened = self.open()
            self.file = self.path.stat().st_ino
        try:
            with self.opened:  # a transaction
                return work(self.opened)
        except sqlite3.DatabaseError as error:
            if is_of_contents(error):
                self.broken(error)
            raise

    def open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self.connected()
        except sqlite3.DatabaseError as error:
            if not is_of_contents(error):
                raise
            self.put_aside(error)
            return self.connected()

    def broken(self, error: sqlite3.DatabaseError) -> None:
        """Handle damage that was not noticed when the file was opened: the next operation starts with a new file."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None
        if self.path.exists() and self.path.stat().st_ino == self.file:  # else another process has done it
            self.put_aside(error)

    def put_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_suffix(".unreadable")
        log.warning("%s is not a store of this program (%s): it was renamed to %s", self.path, error, aside)
        self.path.replace(aside)
        for rest in ("-wal", "-shm"):
            self.path.with_name(self.path.name + rest).unlink(missing_ok=True)

    def connected(self) -> sqlite3.Connection:
        made = sqlite3.connect(self.path, timeout=BUSY, check_same_thread=False)
        try:
            made.execute("PRAGMA journal_mode=WAL")
            # A power failure may lose the last entries of a cache, but does not damage the file.
            made.execute("PRAGMA synchronous=NORMAL")
            (page,) = made.execute("PRAGMA page_size").fetchone()
            made.execute(f"PRAGMA max_page_count={max(100, self.most * 5 // 4 // page)}")
            made.executescript(SCHEMA)
        except BaseException:
            made.close()
            raise
        return made

    async def get(self, keys: Sequence[str]) -> list[StoredValue | None]:
        now = self.clock.time()

        def work(base: sqlite3.Connection) -> dict[str, StoredValue]:
            found: dict[str, StoredValue] = {}
            for at in range(0, len(keys), BATCH):
                some = keys[at : at + BATCH]
                rows = base.execute(
                    f"SELECT key, value, born FROM kept WHERE expires > ? AND key IN ({marks(some)})",  # noqa: S608
                    (now, *some),  # the statement itself contains only question marks
                )
                found |= {key: StoredValue(value, born) for key, value, born in rows}
            return found

        found = await self.do(work)
        self.touched |= dict.fromkeys(found, now)
        return [found.get(key) for key in keys]

    async def set(self, news: Sequence[NewValue]) -> None:
        now, touched, self.touched = self.clock.time(), self.touched, {}
        rows = [
            (new.key, new.value, new.label, size, now, now + new.ttl, now)
            for new in {new.key: new for new in news}.values()  # only the last of each key, or their sum is wrong
            if (size := OVERHEAD + len(new.key) + len(new.label) + len(new.value)) <= self.most
        ]

        def work(base: sqlite3.Connection) -> None:
            base.executemany("UPDATE kept SET used = ? WHERE key = ?", [(when, key) for key, when in touched.items()])
            base.executemany("DELETE FROM kept WHERE key = ?", [(new.key,) for new in news])
            make_room(base, self.most, sum(row[3] for row in rows), now)
            base.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

        await self.do(work)

    async def delete(self, keys: Sequence[str]) -> int:
        def work(base: sqlite3.Connection) -> int:
            return sum(base.execute("DELETE FROM kept WHERE key = ?", (key,)).rowcount for key in keys)

        return await self.do(work)

    async def entries(self, prefix: str = "") -> AsyncIterator[Entry]:
        after = prefix
        while True:
            rows = await self.do(page_after(after, prefix, self.clock.time()))
            for key, label, size, born, expires in rows:
                yield Entry(key, label, size, born, expires)
            if len(rows) < BATCH:
                return
            after = rows[-1][0] + "\0"

    async def expire(self) -> int:
        now = self.clock.time()
        return await self.do(lambda base: base.execute("DELETE FROM kept WHERE expires <= ?", (now,)).rowcount)

    async def aclose(self) -> None:
        def close() -> None:
            if self.opened is not None:
                self.opened.close()
                self.opened = None

        self.closed = True
        await asyncio.get_running_loop().run_in_executor(self.thread, close)
        self.thread.shutdown(wait=False)


Row = tuple[str, bytes, int, float, float]


def page_after(after: str, prefix: str, now: float) -> Callable[[sqlite3.Connection], list[Row]]:
    def work(base: sqlite3.Connection) -> list[Row]:
        return base.execute(
            "SELECT key, label, size, born, expires FROM kept WHERE key >= ? AND substr(key, 1, ?) = ? "
            "AND expires > ? ORDER BY key LIMIT ?",
            (after, len(prefix), prefix, now, BATCH),
        ).fetchall()

    return work


def is_of_contents(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is damaged or not a database, rather than locked, full or not accessible."""
    return type(error) is sqlite3.DatabaseError


def make_room(base: sqlite3.Connection, most: int, wanted: int, now: float) -> None:
    """Delete rows until `wanted` bytes fit: expired ones first, then the least recently used.

    Rows take whole pages, so sizes are multiplied by how much larger the file is than its contents.
    """
    (size,) = base.execute("SELECT size FROM total").fetchone()
    waste = max(1.0, taken(base) / size) if size > most // 20 else 2.0
    if (size + wanted) * waste <= most:
        return
    base.execute("DELETE FROM kept WHERE expires <= ?", (now,))
    (size,) = base.execute("SELECT size FROM total").fetchone()
    going: list[tuple[str]] = []
    for key, freed in base.execute("SELECT key, size FROM kept ORDER BY used"):
        if (size + wanted) * waste <= most * ROOM:
            break
        going.append((key,))
        size -= freed
    base.executemany("DELETE FROM kept WHERE key = ?", going)


def taken(base: sqlite3.Connection) -> float:
    """Bytes of the pages in use, reduced by the quarter that the file may be larger than its maximum."""
    (pages,), (free,), (page,) = (
        base.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return float((pages - free) * page * 4 / 5)


def marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))
