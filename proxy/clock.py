"""Time and chance, in one place so that tests can bring their own."""

from __future__ import annotations

import asyncio
import random
import time
from math import inf


class Deadline:
    """Until when somebody waits for an answer, in monotonic seconds of the event loop.

    Whoever hands a call on may set an earlier one of its own, within the `outer` one.
    """

    __slots__ = ("outer", "own")

    def __init__(self, own: float, outer: Deadline | None = None) -> None:
        self.own = own
        self.outer = outer

    @property
    def at(self) -> float:
        """It may be later than it was, when others have come to wait for the same answer."""
        return self.own if self.outer is None else min(self.own, self.outer.at)

    def put_off(self, other: Deadline | None) -> None:
        """Somebody else waits, too, and as long as this; None is for ever."""
        self.own = inf if other is None else max(self.own, other.at)


class Moment:
    """When something happened that several tell of: the first who asks settles it.  seconds: Unix seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: int | None = None) -> None:
        self.seconds = seconds

    def __call__(self) -> int:
        if self.seconds is None:
            self.seconds = int(time.time())
        return self.seconds


class Clock:
    """Time and chance, so that tests can bring their own."""

    monotonic = staticmethod(time.monotonic)
    """Seconds of the clock that event loops use; compare with `Call.deadline.at`."""
    time = staticmethod(time.time)
    """Unix seconds.  Not methods that call these: every call asks several times."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)  # noqa: S311  (spreads retries, guards nothing)
