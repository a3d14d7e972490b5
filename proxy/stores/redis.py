"""A key-value store in Redis, alone or as a cluster."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from proxy.availability import Availability
from proxy.clock import Clock
from proxy.stores.breaker import Breaker
from proxy.stores.counters.redis import InRedis
from proxy.stores.keyvalue import Entry, NewValue, StoredValue, StoreError

HEAD: Final = struct.Struct("!2sdI")
"""The header before a label and a value: a mark, when it was set, and the length of the label."""
MARK: Final = b"G1"
FIRST: Final = 4096
"""Bytes read of an entry for its label; longer labels need a second read."""
BATCH: Final = 200
STEP: Final = 1000
"""Keys that one step of a scan visits."""
CONNECTIONS: Final = 64
SLOWLY: Final = 10.0
"""Factor by which operations on all keys, and counters, may take longer."""
FOREIGN: Final = "WRONGTYPE"
"""The beginning of Redis's error for reading a value that is not a string."""
CLUSTER: Final = "+cluster"
SPACE: Final = "gemmapy:"


class RedisStore:
    """url: redis://, rediss:// (TLS), redis+cluster:// or rediss+cluster://.  patience: seconds for one operation.

    Redis limits its own size, by `maxmemory` with an `lru` or `lfu` policy.
    """

    def __init__(self, url: str, patience: float, clock: Clock) -> None:
        self.clock = clock
        place = urlsplit(url)
        self.room = asyncio.Semaphore(CONNECTIONS)
        """Limits concurrent operations, because redis-py's cluster has no pool that waits: an operation that finds all
        connections to a node in use would fail."""
        self.availability = Availability()
        name = f"Redis at {place.hostname}:{place.port or 6379}"
        self.breaker = Breaker(name, patience, clock, self.availability, self.room)
        # Operations on all keys take long; their timeouts must not open the breaker for reads.
        self.slow = Breaker(f"{name}, looked through", SLOWLY * patience, clock, self.availability, self.room)
        # One try only, because callers wait for it.  No timeout of the client's own, because it would use asyncio's
        # wait_for, which in Python 3.11 swallows the breaker's timeout.
        retry = Retry(NoBackoff(), 0)
        common: dict[str, Any] = {"socket_connect_timeout": patience, "socket_timeout": None, "retry": retry}
        self.together = Together(self.read)
        self.counting: InRedis | None = None
        self.client: Any
        if place.scheme.endswith(CLUSTER):
            self.client = RedisCluster.from_url(url.replace(CLUSTER, "", 1), **common)
        else:
            pool = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=patience, **common)
            self.client = Redis.from_pool(pool)

    async def get(self, keys: Sequence[str]) -> list[StoredValue | None]:
        found = await self.together.read([SPACE + key for key in keys])
        return [opened(one) for one in found]

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await self.breaker.do(self.values([("GET", key) for key in keys]))
        return [None if isinstance(one, Exception) else one for one in found]

    async def values(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The result of each command, or its error: a value of another type is not ours, and if one node of a cluster
        fails, the others still count.  Raises if all fail for other reasons, as the store itself has then failed."""
        found = await self.execute(commands)
        failed = [one for one in found if isinstance(one, Exception) and not str(one).startswith(FOREIGN)]
        if found and len(failed) == len(found):
            raise failed[0]
        return found

    async def set(self, news: Sequence[NewValue]) -> None:
        now = self.clock.time()
        commands = [
            ("SET", SPACE + new.key, HEAD.pack(MARK, now, len(new.label)) + new.label + new.value,
             "PX", max(1, int(new.ttl * 1000)))
            for new in news
        ]  # fmt: skip
        await self.breaker.do(self.piped(commands))

    async def piped(self, commands: Sequence[tuple[Any, ...]], raises: bool = True) -> list[Any]:
        """The results of commands, with one round trip (in a cluster, one to each node)."""
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        # redis-py's own exception would contain the command, and with it what a client has asked.
        found: list[Any] = await pipe.execute(raise_on_error=False)
        if raises and (failed := next((one for one in found if isinstance(one, Exception)), None)) is not None:
            raise failed
        return found

    async def delete(self, keys: Sequence[str]) -> int:
        gone = 0
        for at in range(0, len(keys), BATCH):
            some = [("UNLINK", SPACE + key) for key in keys[at : at + BATCH]]
            gone += sum(await self.slow.do(self.piped(some)))
        return gone

    async def entries(self, prefix: str = "") -> AsyncIterator[Entry]:
        seen: set[bytes] = set()  # a scan may give a key twice
        async for some in self.scanned(f"{SPACE}{escaped(prefix)}*"):
            fresh = [key for key in dict.fromkeys(some) if key not in seen]
            seen.update(fresh)
            for at in range(0, len(fresh), BATCH):
                for entry in await self.described(fresh[at : at + BATCH]):
                    yield entry

    async def scanned(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """The keys that each step of a scan finds, possibly none; in a cluster, one node after the other."""
        nodes = self.client.get_primaries() if isinstance(self.client, RedisCluster) else [None]
        for node in nodes:
            where = {} if node is None else {"target_nodes": node}
            cursor = 0
            while True:
                told = await self.slow.do(self.client.scan(cursor, match=pattern, count=STEP, **where))
                cursors, some = told
                cursor = next(iter(cursors.values())) if isinstance(cursors, dict) else cursors
                yield some
                if not cursor:
                    break

    async def described(self, keys: Sequence[bytes]) -> list[Entry]:
        asked = [
            command
            for key in keys
            for command in (("GETRANGE", key, 0, FIRST - 1), ("STRLEN", key), ("PTTL", key))
        ]  # fmt: skip
        told = await self.slow.do(self.piped(asked))
        found = []
        for index, key in enumerate(keys):
            start, size, left = told[3 * index : 3 * index + 3]
            if entry := await self.entry(key, start, size, left):
                found.append(entry)
        return found

    async def entry(self, key: bytes, start: bytes, size: int, left: int) -> Entry | None:
        """An entry's metadata; None if it no longer exists, or was not written by this program."""
        if left <= 0 or len(start) < HEAD.size or not start.startswith(MARK):
            return None
        _, born, length = HEAD.unpack_from(start)
        if HEAD.size + length > len(start):
            start = await self.slow.do(self.client.getrange(key, 0, HEAD.size + length - 1))
        label = start[HEAD.size : HEAD.size + length]
        name = key.decode().removeprefix(SPACE)
        return Entry(name, label, size + len(key), born, self.clock.time() + left / 1000)

    async def expire(self) -> int:
        return 0

    def counters(self) -> InRedis:
        """The counters in this Redis.  They have a breaker of their own with a longer timeout, because limits are more
        important than cached answers."""
        if self.counting is None:
            name, patience = f"{self.breaker.name} (for limits)", SLOWLY * self.breaker.patience
            breaker = Breaker(name, patience, self.clock, self.availability, self.room)
            self.counting = InRedis(self.execute, breaker, self.clock)
        return self.counting

    async def execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The result of each command, or its error; a single one is sent without the overhead of a pipeline."""
        if len(commands) > 1:
            return await self.piped(commands, raises=False)
        try:
            return [await self.client.execute_command(*commands[0])]
        except ResponseError as error:
            return [error]

    async def aclose(self) -> None:
        await self.client.aclose()


class Together:
    """Combines all reads of one turn of the event loop into one round trip, which takes most of their time."""

    def __init__(self, read: Callable[[Sequence[str]], Awaitable[list[bytes | None]]]) -> None:
        self.read_all = read
        self.waiting: list[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[bytes | None]] = loop.create_future()
        if not self.waiting:
            loop.call_soon(self.send)
        self.waiting.append((keys, future))
        return await future

    def send(self) -> None:
        waiting, self.waiting = self.waiting, []
        # A separate task, so that it is not cancelled with one of its callers.
        task = asyncio.get_running_loop().create_task(self.sent(waiting))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def sent(self, waiting: Sequence[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]]) -> None:
        try:
            found = await self.read_all([key for keys, _ in waiting for key in keys])
        except StoreError as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        at = 0
        for keys, future in waiting:
            if not future.done():
                future.set_result(found[at : at + len(keys)])
            at += len(keys)


def opened(found: bytes | None) -> StoredValue | None:
    """The value in an entry; None if the entry does not exist or was not written by this program."""
    if found is None or len(found) < HEAD.size or not found.startswith(MARK):
        return None
    _, born, length = HEAD.unpack_from(found)
    return StoredValue(found[HEAD.size + length :], born) if HEAD.size + length <= len(found) else None


def escaped(prefix: str) -> str:
    """A prefix, escaped for Redis's patterns."""
    return "".join(f"\\{one}" if one in "*?[]\\^-" else one for one in prefix)
