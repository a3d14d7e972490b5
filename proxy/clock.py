"""Time and chance, in one place so that tests can bring their own."""

from __future__ import annotations

import asyncio
import random
import time


class Clock:
    """Time and chance, so that tests can bring their own."""

    monotonic = staticmethod(time.monotonic)
    """Seconds of the clock that event loops use; compare with `Call.deadline`."""
    time = staticmethod(time.time)
    """Unix seconds.  Not methods that call these: every call asks several times."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)  # noqa: S311  (spreads retries, guards nothing)
