"""The health of one host: its failures, its cool-down, and its recovery."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import ceil
from typing import Final

COOLING: Final = 3
"""Consecutive failures after which a host cools down: it gets no calls until its rest is over, then one as a trial."""
FIRST: Final = 1.0
"""Seconds that a host rests after a failure; doubled with each further consecutive one, up to LONGEST."""
LONGEST: Final = 30.0
START: Final = 10.0
"""Seconds of slow start, in which a host that has recovered gets back its full share of calls."""
STARTING: Final = 8
"""Calls added to its load at the beginning of the slow start; they decrease linearly to 0."""
RESTING: Final = 2**20
"""Calls added to the load of a host that rests: it is chosen last."""
CLOSED: Final = 2**40
"""Calls added to the load of a host that cools down or has its trial: it is chosen only if no other could be."""


@dataclass(slots=True, eq=False)
class Standing:
    """busy: number of calls under way.  picked: sequence number of its latest choice.  Times are monotonic seconds."""

    url: str
    name: str = ""
    """The upstream that callers are told for its answers."""
    busy: int = 0
    picked: int = 0
    out: bool = False
    """Whether it is unreachable and gets no calls until a probe succeeds."""
    failures: int = 0
    """Consecutive failed calls."""
    rests: float = 0.0
    """Time until which other hosts are preferred because of these failures."""
    trial: bool = False
    """Whether a trial call is under way, which decides if the cool-down ends."""
    back: float = float("-inf")
    """Time of its latest recovery, when its slow start began."""
    well: bool = True
    """Whether it has no failures and its slow start is over, so that `burden` is 0 and need not be computed."""
    told: bool = False
    """Whether its cool-down was reported by another process, not observed by this one."""
    probe: asyncio.Task[None] | None = None
    """Checks periodically whether it is reachable again."""

    def failed(self, now: float) -> float:
        """Record a failed call.  Gives the seconds for which it cools down, 0 if it only rests."""
        self.failures += 1
        self.trial = self.well = self.told = False
        seconds = min(LONGEST, FIRST * 2.0 ** (self.failures - 1))
        self.rests = now + seconds
        return seconds if self.failures >= COOLING else 0.0

    def answered(self, now: float) -> bool:
        """Record a successful call.  Gives whether this ends a cool-down: calls that began before the trial do not."""
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
        """Calls to add to its load, because of its failures or slow start."""
        if self.failures and self.rests > now:
            return CLOSED if self.failures >= COOLING else RESTING
        if self.failures:
            return CLOSED if self.trial else 0
        if (left := self.back + START - now) > 0:
            return ceil(STARTING * left / START)
        self.well = True
        return 0

    def state(self, now: float) -> str:
        """One of `in`, `out`, `cooling`, `resting`, `trial` and `starting`."""
        if self.out:
            return "out"
        if self.failures and self.rests > now:
            return "cooling" if self.failures >= COOLING else "resting"
        if self.trial:
            return "trial"
        return "starting" if self.back + START > now else "in"
