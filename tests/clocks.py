"""Clocks that tests move by hand."""

from __future__ import annotations

import asyncio

from proxy.clock import Clock


class Watch(Clock):
    """A clock that stands still until it is moved.  Sleeps end at once."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def move(self, seconds: float) -> None:
        self.now += seconds


def put_forward(clock: Clock, seconds: float) -> None:
    """Advance the monotonic time of a running server's clock, which then runs on from there."""
    before = clock.monotonic
    clock.monotonic = lambda: before() + seconds


def jump(seconds: float) -> None:
    """Advance the event loop's time, so that timers due in these seconds run now."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
