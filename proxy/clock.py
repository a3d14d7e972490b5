"""Time and randomness, in one place so that tests can replace them."""

from __future__ import annotations

import asyncio
import random
import time
from math import inf


class Deadline:
    """When an answer is no longer needed, in monotonic seconds of the event loop.

    A plugin may give the call that it hands on an earlier deadline of its own, inside the `outer` one.
    """

    __slots__ = ("outer", "own")

    def __init__(self, own: float, outer: Deadline | None = None) -> None:
        self.own = own
        self.outer = outer

    @property
    def at(self) -> float:
        """It can become later, because other calls may join to wait for the same answer."""
        return self.own if self.outer is None else min(self.own, self.outer.at)

    def put_off(self, other: Deadline | None) -> None:
        """Extend it for another call that waits for the same answer until `other`; None means without limit."""
        self.own = inf if other is None else max(self.own, other.at)


class Moment:
    """A point in time that several parts report alike: the first that calls it sets it to now.  In Unix seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: int | None = None) -> None:
        self.seconds = seconds

    def __call__(self) -> int:
        if self.seconds is None:
            self.seconds = int(time.time())
        return self.seconds


class Clock:
    """Time and randomness; tests replace it."""

    monotonic = staticmethod(time.monotonic)
    """Seconds of the clock that event loops use; compare with `Call.deadline.at`."""
    time = staticmethod(time.time)
    """Unix seconds.  Both are the functions themselves, not methods around them, because every call uses them often."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)  # noqa: S311  (spreads retries, guards nothing)
