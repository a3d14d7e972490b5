"""How one host stands with those who send it calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import ceil
from typing import Final

COOLING: Final = 3
"""Failures in a row after which a host cools down: it gets no call until it has rested, and then one to try it."""
FIRST: Final = 1.0
"""Seconds that one rests after a failure; twice as long after each further one in a row."""
LONGEST: Final = 30.0
START: Final = 10.0
"""Seconds in which one that has come back grows into its whole share."""
STARTING: Final = 8
"""Calls that it counts as having more than it has when that begins."""
RESTING: Final = 2**20
"""The same of one that rests: it comes last."""
CLOSED: Final = 2**40
"""The same of one that cools down: it comes only where there is no other."""


@dataclass(slots=True, eq=False)
class Standing:
    """busy: calls under way; picked: when it was last chosen, as a running number.  Times are monotonic seconds."""

    url: str
    name: str = ""
    """What callers are told of where their answer comes from."""
    busy: int = 0
    picked: int = 0
    out: bool = False
    """Whether it did not answer, and another is asked instead."""
    failures: int = 0
    """Calls in a row that failed there."""
    rests: float = 0.0
    """Until when others go before it, because of these."""
    trial: bool = False
    """Whether a call is under way that shows if it is well again."""
    back: float = float("-inf")
    """When it came back."""
    well: bool = True
    """Whether there is nothing to be said against it: then none of the others need be looked at."""
    told: bool = False
    """Whether another process said so, and this one has not seen it."""
    probe: asyncio.Task[None] | None = None
    """Looks whether it is back."""

    def failed(self, now: float) -> float:
        """A call has failed there.  Gives the seconds that it cools down, 0 where it only rests."""
        self.failures += 1
        self.trial = self.well = self.told = False
        seconds = min(LONGEST, FIRST * 2.0 ** (self.failures - 1))
        self.rests = now + seconds
        return seconds if self.failures >= COOLING else 0.0

    def answered(self, now: float) -> bool:
        """A call went well there.  Whether that ends its cooling down: only a call that came after it does."""
        if self.failures >= COOLING:
            if self.trial:
                self.recovered(now)
                return True
            return False
        self.failures = 0
        return False

    def recovered(self, now: float) -> None:
        self.failures, self.back = 0, now
        self.trial = self.told = False

    def let_back(self, now: float) -> None:
        self.out = False
        self.back, self.well = now, False

    def burden(self, now: float) -> int:
        """The calls that it counts as having more than it has."""
        if self.failures and self.rests > now:
            return CLOSED if self.failures >= COOLING else RESTING
        if self.failures:
            return CLOSED if self.trial else 0
        if (left := self.back + START - now) > 0:
            return ceil(STARTING * left / START)
        self.well = True
        return 0

    def state(self, now: float) -> str:
        """In a word: `in`, `out`, `cooling`, `resting`, `trial` or `starting`."""
        if self.out:
            return "out"
        if self.failures and self.rests > now:
            return "cooling" if self.failures >= COOLING else "resting"
        if self.trial:
            return "trial"
        return "starting" if self.back + START > now else "in"
