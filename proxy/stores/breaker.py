"""A circuit breaker for stores that fail or are slow, because a slow cache is worse than none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, TypeVar

from proxy.availability import Availability
from proxy.clock import Clock
from proxy.stores.keyvalue import StoreError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FAILURES: Final = 5
"""Failures in a row after which the store is not used for a while."""
REST: Final = 5.0
"""Seconds for which it is not used; then one operation tries it."""
SAY: Final = 60.0
"""Minimum seconds between two log lines."""


class Breaker:
    """name: of the store, for the log.  patience: seconds that one operation may take.

    availability: notes whether the store answered; several breakers of one store share it.
    room: entered by each operation, such as a semaphore.
    """

    def __init__(
        self,
        name: str,
        patience: float,
        clock: Clock,
        availability: Availability,
        room: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self.name = name
        self.availability = availability
        self.room = room or nullcontext()
        self.patience = patience
        self.clock = clock
        self.failures = 0
        self.until = float("-inf")
        self.said = float("-inf")

    @property
    def open(self) -> bool:
        return self.failures >= FAILURES and self.clock.monotonic() < self.until

    async def do(self, work: Awaitable[Result], patience: float | None = None) -> Result:
        """The result of an operation.  Raises StoreError for any failure, and at once while the breaker is open."""
        if self.open:
            forget(work)
            raise StoreError(f"{self.name} is not used for a moment, after {self.failures} failures in a row")
        if self.failures >= FAILURES:
            self.until = self.clock.monotonic() + REST  # only this operation tries the store; the breaker stays open
        try:
            async with asyncio.timeout(patience or self.patience), self.room:
                result = await work
        except TimeoutError:
            raise self.failed(f"no answer within {patience or self.patience:g} seconds") from None
        except Exception as error:  # client libraries have many kinds of errors
            raise self.failed(str(error) or type(error).__name__) from error
        finally:
            forget(work)
        self.availability.note(up=True)
        if self.failures:
            if self.failures >= FAILURES:
                log.info("%s answers again", self.name)
            self.failures = 0
        return result

    def failed(self, why: str) -> StoreError:
        self.availability.note(up=False)
        self.failures += 1
        now = self.clock.monotonic()
        self.until = now + REST
        if now - self.said >= SAY:
            self.said = now
            log.warning("%s fails; calls go on without it: %s", self.name, why)
        return StoreError(f"{self.name}: {why}")


def forget(work: Awaitable[object]) -> None:
    """Close a coroutine that may not have been started, to avoid a warning; no effect on a finished one."""
    if (close := getattr(work, "close", None)) is not None:
        close()
