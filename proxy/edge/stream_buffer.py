"""The bounded buffer of a streamed answer, with heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.config import Streams
from proxy.errors import ProxyError, ReaderTooSlow

WAITING: Final = "waiting"


class StreamBuffer:
    """A pump puts bytes in, and the request's handler takes all of them out at once, for a single write.

    After `heartbeat` seconds without a byte, a comment is put in that says what the call is waiting for.
    """

    def __init__(self, streams: Streams, comment: Callable[[str], bytes]) -> None:
        self.streams = streams
        self.comment = comment
        self.loop = asyncio.get_running_loop()
        self.parts: list[bytes] = []
        self.size = 0
        self.begun = False
        """Whether bytes were taken; the status 200 is then sent, so failures can only be reported in the stream."""
        self.over = False
        self.failure: ProxyError | None = None
        self.ready = asyncio.Event()
        self.room = asyncio.Event()
        self.doing = WAITING
        self.touched = self.loop.time()
        self.timer: asyncio.TimerHandle | None = None
        if streams.heartbeat:
            self.timer = self.loop.call_later(streams.heartbeat, self.beat)

    def progress(self, text: str) -> None:
        """Set what the next heartbeat says about a waiting call."""
        self.doing = text

    def put(self, data: bytes) -> None:
        if not data or self.over:  # b"" is an event that the dialect does not write, and would be taken for the end
            return
        self.size += len(data)
        if not self.parts:
            self.ready.set()
        self.parts.append(data)

    @property
    def is_full(self) -> bool:
        return self.size > self.streams.buffer_bytes

    async def until_room(self) -> None:
        """Wait until the client has read.  Raises ReaderTooSlow if it reads nothing for `slow_reader` seconds."""
        self.room.clear()
        try:
            async with asyncio.timeout(self.streams.slow_reader):
                await self.room.wait()
        except TimeoutError:
            message = f"The client read nothing for {self.streams.slow_reader:g} seconds while its buffer was full."
            raise ReaderTooSlow(message, code="reader_too_slow") from None

    def end(self) -> None:
        self.over = True
        self.close()  # nothing may follow the end, not even a heartbeat
        self.ready.set()

    def fail(self, error: ProxyError, in_band: bytes) -> None:
        """End with an error: as the bytes `in_band` if others were put in before, else raised by `take`."""
        if self.begun or self.parts:
            self.put(in_band)
        else:
            self.failure = error
        self.end()

    async def take(self) -> bytes:
        """Wait for bytes and take all of them; b"" is the end.  Raises the error of a call that failed before any."""
        if not self.parts and not self.over:
            self.ready.clear()
            await self.ready.wait()
        if self.failure is not None:
            raise self.failure
        data = b"".join(self.parts)
        self.parts.clear()
        self.size = 0
        self.begun = self.begun or bool(data)
        self.touched = self.loop.time()
        self.room.set()
        return data

    def beat(self) -> None:
        idle = self.loop.time() - self.touched
        if idle + 0.001 >= self.streams.heartbeat:
            if not self.parts:
                self.put(self.comment(self.doing))
            idle = 0.0
        self.timer = self.loop.call_later(self.streams.heartbeat - idle, self.beat)

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
