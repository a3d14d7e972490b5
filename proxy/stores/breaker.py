"""Gives up on a store that fails or dawdles: a slow one is worse than none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, TypeVar

from proxy.clock import Clock
from proxy.seen import Seen
from proxy.stores.keyvalue import StoreError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FAILURES: Final = 5
"""In a row, after which the store is left alone."""
REST: Final = 5.0
"""Seconds for which it is; then one operation tries it."""
SAY: Final = 60.0
"""Seconds between two lines in the log."""


class Breaker:
    """name: what the log calls the store.  patience: seconds that one operation may take.  room: entered by each.

    seen: of the store, which may have several of these.
    """

    def __init__(
        self,
        name: str,
        patience: float,
        clock: Clock,
        seen: Seen,
        room: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self.name = name
        self.seen = seen
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
        """Raises StoreError for whatever goes wrong, and at once while the store is left alone."""
        if self.open:
            forget(work)
            raise StoreError(f"{self.name} is not used for a moment, after {self.failures} failures in a row")
        if self.failures >= FAILURES:
            self.until = self.clock.monotonic() + REST  # this one tries it, the others go on without
        try:
            async with asyncio.timeout(patience or self.patience), self.room:
                result = await work
        except TimeoutError:
            raise self.failed(f"no answer within {patience or self.patience:g} seconds") from None
        except Exception as error:  # a client library's kinds of failure are many
            raise self.failed(str(error) or type(error).__name__) from error
        finally:
            forget(work)
        self.seen.note(up=True)
        if self.failures:
            if self.failures >= FAILURES:
                log.info("%s answers again", self.name)
            self.failures = 0
        return result

    def failed(self, why: str) -> StoreError:
        self.seen.note(up=False)
        self.failures += 1
        now = self.clock.monotonic()
        self.until = now + REST
        if now - self.said >= SAY:
            self.said = now
            log.warning("%s fails; calls go on without it: %s", self.name, why)
        return StoreError(f"{self.name}: {why}")


def forget(work: Awaitable[object]) -> None:
    """A coroutine that may not have been begun; to one that is over it does nothing."""
    if (close := getattr(work, "close", None)) is not None:
        close()
