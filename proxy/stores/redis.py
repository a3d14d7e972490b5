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

from proxy.clock import Clock
from proxy.seen import Seen
from proxy.stores.breaker import Breaker
from proxy.stores.counters.redis import InRedis
from proxy.stores.keyvalue import Entry, Kept, New, StoreError

HEAD: Final = struct.Struct("!2sdI")
"""What stands before a label and a value: a mark, when it was set, and how long the label is."""
MARK: Final = b"G1"
FIRST: Final = 4096
"""Bytes read of an entry for its label; longer labels are read in a second go."""
BATCH: Final = 200
STEP: Final = 1000
"""Keys that one step of a scan looks at."""
CONNECTIONS: Final = 64
SLOWLY: Final = 10.0
"""Times as patient with what looks through everything."""
FOREIGN: Final = "WRONGTYPE"
"""How Redis refuses to read what is no string."""
CLUSTER: Final = "+cluster"
SPACE: Final = "gemmapy:"


class RedisStore:
    """url: redis://, rediss:// (TLS), redis+cluster:// or rediss+cluster://.  patience: seconds of one operation.

    Redis bounds itself: `maxmemory` with an `lru` or `lfu` policy.
    """

    def __init__(self, url: str, patience: float, clock: Clock) -> None:
        self.clock = clock
        place = urlsplit(url)
        self.room = asyncio.Semaphore(CONNECTIONS)
        """redis-py's cluster has no pool that waits: whoever finds all connections to a node taken would fail."""
        self.seen = Seen()
        name = f"Redis at {place.hostname}:{place.port or 6379}"
        self.breaker = Breaker(name, patience, clock, self.seen, self.room)
        # Looking through everything takes long; it must not count against those who read.
        self.slow = Breaker(f"{name}, looked through", SLOWLY * patience, clock, self.seen, self.room)
        # One try: another would be paid for by whoever waits.  No limit of the client's own: with one it waits through
        # asyncio's wait_for, which in Python 3.11 loses the breaker's.
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

    async def get(self, keys: Sequence[str]) -> list[Kept | None]:
        found = await self.together.read([SPACE + key for key in keys])
        return [opened(one) for one in found]

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await self.breaker.do(self.values([("GET", key) for key in keys]))
        return [None if isinstance(one, Exception) else one for one in found]

    async def values(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What each gives, or its error: a value of another kind is none of ours, and one node of a cluster that fails
        takes nothing from the others.  Raises where all of them fail, since then it is the store that does."""
        found = await self.told(commands)
        failed = [one for one in found if isinstance(one, Exception) and not str(one).startswith(FOREIGN)]
        if found and len(failed) == len(found):
            raise failed[0]
        return found

    async def set(self, news: Sequence[New]) -> None:
        now = self.clock.time()
        commands = [
            ("SET", SPACE + new.key, HEAD.pack(MARK, now, len(new.label)) + new.label + new.value,
             "PX", max(1, int(new.ttl * 1000)))
            for new in news
        ]  # fmt: skip
        await self.breaker.do(self.piped(commands))

    async def piped(self, commands: Sequence[tuple[Any, ...]], raises: bool = True) -> list[Any]:
        """One round trip (in a cluster one to each node)."""
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        # redis-py's own raising would repeat the command, and with it what somebody asked.
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
        """What each step of a scan finds, which may be nothing; one node of a cluster after the other."""
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
        """None for what is gone by now, or was not written here."""
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
        """Its own breaker: a limit is worth more patience than a cache's answer."""
        if self.counting is None:
            name, patience = f"{self.breaker.name} (for limits)", SLOWLY * self.breaker.patience
            breaker = Breaker(name, patience, self.clock, self.seen, self.room)
            self.counting = InRedis(self.told, breaker, self.clock)
        return self.counting

    async def told(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What each command gives, or its error; one alone is spared the making of a pipeline."""
        if len(commands) > 1:
            return await self.piped(commands, raises=False)
        try:
            return [await self.client.execute_command(*commands[0])]
        except ResponseError as error:
            return [error]

    async def aclose(self) -> None:
        await self.client.aclose()


class Together:
    """Reads that are asked for in one turn of the event loop go in one round trip, which costs most of their time."""

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
        # Not one caller's: it must not end because that one leaves.
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


def opened(found: bytes | None) -> Kept | None:
    """What was not written here is as good as absent."""
    if found is None or len(found) < HEAD.size or not found.startswith(MARK):
        return None
    _, born, length = HEAD.unpack_from(found)
    return Kept(found[HEAD.size + length :], born) if HEAD.size + length <= len(found) else None


def escaped(prefix: str) -> str:
    """A prefix as Redis's patterns want it."""
    return "".join(f"\\{one}" if one in "*?[]\\^-" else one for one in prefix)
