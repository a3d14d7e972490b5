"""Many readers of slow streams, in which every token contains the time at which it was sent."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

from tests.bench.asks import FIRST, Ask

SENT = re.compile(rb'"content":"at (\d+)"')


@dataclass(slots=True)
class Heard:
    """The results of all readers.  delays: seconds between a token's sending and its arrival."""

    delays: list[float] = field(default_factory=list)
    ended: int = 0


class Reader(asyncio.Protocol):
    """Reads one stream to its end."""

    transport: asyncio.Transport

    def __init__(self, ask: Ask, heard: Heard) -> None:
        self.request = ask.numbered(time.monotonic_ns() % FIRST)
        self.heard = heard
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Chunks arrive one at a time, as the server writes them, so no token is split between two calls."""
        now = time.monotonic_ns()
        self.heard.delays += [(now - int(sent)) / 1e9 for sent in SENT.findall(data)]
        if data.endswith(b"0\r\n\r\n"):
            self.heard.ended += 1
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.done.set_result(None)


class First(Reader):
    """Reads one stream that stops after its first token."""

    def data_received(self, data: bytes) -> None:
        self.heard.ended += b"at first" in data

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing to report: the benchmark closed it."""


def read_streams(port: int, ask: Ask, count: int) -> Heard:
    """Read `count` streams, started evenly over one second, so that their tokens are not synchronous."""
    return uvloop.run(reading(port, ask, count))


async def idling(port: int, ask: Ask, count: int, measure: Callable[[], float]) -> float:
    """The result of `measure` while `count` streams are open and each has had its first token."""
    heard, loop = Heard(), asyncio.get_running_loop()
    found = [await loop.create_connection(lambda: First(ask, heard), "127.0.0.1", port) for _ in range(count)]
    async with asyncio.timeout(30):
        while heard.ended < count:  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    measured = measure()
    for transport, _ in found:
        transport.abort()
    return measured


async def reading(port: int, ask: Ask, count: int) -> Heard:
    heard, loop = Heard(), asyncio.get_running_loop()
    readers: list[Reader] = []
    for _ in range(count):
        _, reader = await loop.create_connection(lambda: Reader(ask, heard), "127.0.0.1", port)
        readers.append(reader)
        await asyncio.sleep(1 / count)
    await asyncio.gather(*(reader.done for reader in readers))
    return heard
