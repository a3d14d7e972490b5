"""Time and chance, in one place so that tests can bring their own."""

from __future__ import annotations

import asyncio
import random
import time


class Clock:
    """Time and chance, so that tests can bring their own."""

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of the clock that event loops use; compare with `Call.deadline`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)  # noqa: S311  (spreads retries, guards nothing)
