"""What was taken out while answers were under way: these are not kept afterwards, nor given to who asks then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.host import Clock
from proxy.stores.keyvalue import Entry

MOST: Final = 100
"""Invalidations that are remembered; of what began before an older one nothing is kept."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """at: monotonic seconds.  prefix: of the keys that it was about."""

    at: float
    prefix: str
    fits: Callable[[Entry], bool]


def everything(entry: Entry) -> bool:
    return True


class Invalidations:
    """Of one process: what another one has under way it does not know of."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.last: deque[Invalidation] = deque()
        """In the order of their times."""
        self.forgotten = float("-inf")
        """When the newest was that is remembered no more."""

    def add(self, prefix: str, fits: Callable[[Entry], bool] = everything) -> None:
        """Everything with such keys that fits is taken out now."""
        self.last.append(Invalidation(self.clock.monotonic(), prefix, fits))
        if len(self.last) > MOST:
            self.forgotten = self.last.popleft().at

    def took(self, began: float, where: str, label: Callable[[], bytes]) -> bool:
        """Whether an answer of this key would be gone, had it been there since its generation began.

        began: monotonic seconds.  label: what the entry could be found by.
        """
        if not self.last or self.last[-1].at < began:  # as nearly always
            return False
        if began <= self.forgotten:
            return True
        since = [one for one in self.last if one.at >= began and where.startswith(one.prefix)]
        if not since:
            return False
        now = self.clock.time()
        entry = Entry(where, label(), 0, now, now)
        return any(one.fits(entry) for one in since)
