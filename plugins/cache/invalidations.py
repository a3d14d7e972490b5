"""Remembers clearings of the cache, so that answers still being generated are not cached or joined afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.host import Clock
from proxy.stores.keyvalue import Entry

MOST: Final = 100
"""Invalidations that are remembered.  An answer that began before a forgotten one is not cached."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """at: monotonic seconds.  prefix: of the keys it applies to.  fits: whether it removes an entry with such a key."""

    at: float
    prefix: str
    fits: Callable[[Entry], bool]


def everything(entry: Entry) -> bool:
    return True


class Invalidations:
    """The invalidations made in this process; those of other processes are not known here."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.last: deque[Invalidation] = deque()
        """Oldest first."""
        self.forgotten = float("-inf")
        """Monotonic seconds of the newest clearing that is no longer in `last`."""

    def add(self, prefix: str, fits: Callable[[Entry], bool] = everything) -> None:
        """Record that all entries with this prefix that fit are removed now."""
        self.last.append(Invalidation(self.clock.monotonic(), prefix, fits))
        if len(self.last) > MOST:
            self.forgotten = self.last.popleft().at

    def took(self, began: float, where: str, label: Callable[[], bytes]) -> bool:
        """Whether a clearing since the generation began would have removed its answer.

        began: monotonic seconds.  where: the answer's key.  label: gives the label of its entry.
        """
        if not self.last or self.last[-1].at < began:  # nearly always the case
            return False
        if began <= self.forgotten:
            return True
        since = [one for one in self.last if one.at >= began and where.startswith(one.prefix)]
        if not since:
            return False
        now = self.clock.time()
        entry = Entry(where, label(), 0, now, now)
        return any(one.fits(entry) for one in since)
