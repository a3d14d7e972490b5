"""The health of one host: its failures, its cool-down, and its recovery."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import ceil
from typing import Final

COOLDOWN_AFTER: Final = 3
"""Consecutive failures after which a host cools down: it gets no calls until its rest is over, then one as a trial."""
FIRST_REST: Final = 1.0
"""Seconds that a host rests after a failure; doubled with each further consecutive one, up to LONGEST."""
LONGEST_REST: Final = 30.0
SLOW_START: Final = 10.0
"""Seconds of slow start, in which a host that has recovered gets back its full share of calls."""
SLOW_START_PENALTY: Final = 8
"""Calls added to its load at the beginning of the slow start; they decrease linearly to 0."""
REST_PENALTY: Final = 2**20
"""Calls added to the load of a host that rests: it is chosen last."""
COOLDOWN_PENALTY: Final = 2**40
"""Calls added to the load of a host that cools down or has its trial: it is chosen only if no other could be."""


@dataclass(slots=True, eq=False)
class HostState:
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
    rests_until: float = 0.0
    """Time until which other hosts are preferred because of these failures."""
    trial: bool = False
    """Whether a trial call is under way, which decides if the cool-down ends."""
    recovered_at: float = float("-inf")
    """Time of its latest recovery, when its slow start began."""
    healthy: bool = True
    """Whether it has no failures and its slow start is over, so that `burden` is 0 and need not be computed."""
    reported: bool = False
    """Whether its cool-down was reported by another process, not observed by this one."""
    probe: asyncio.Task[None] | None = None
    """Checks periodically whether it is reachable again."""

    def record_failure(self, now: float) -> float:
        """Record a failed call.  Gives the seconds for which it cools down, 0 if it only rests."""
        self.failures += 1
        self.trial = self.healthy = self.reported = False
        seconds = min(LONGEST_REST, FIRST_REST * 2.0 ** (self.failures - 1))
        self.rests_until = now + seconds
        return seconds if self.failures >= COOLDOWN_AFTER else 0.0

    def record_success(self, now: float) -> bool:
        """Record a successful call.  Gives whether this ends a cool-down: calls that began before the trial do not."""
        if self.failures >= COOLDOWN_AFTER:
            if self.trial:
                self.recover(now)
                return True
            return False
        self.failures = 0
        return False

    def recover(self, now: float) -> None:
        self.failures, self.recovered_at = 0, now
        self.trial = self.reported = False

    def mark_reachable(self, now: float) -> None:
        self.out = False
        self.recovered_at, self.healthy = now, False

    def penalty(self, now: float) -> int:
        """Calls to add to its load, because of its failures or slow start."""
        if self.failures and self.rests_until > now:
            return COOLDOWN_PENALTY if self.failures >= COOLDOWN_AFTER else REST_PENALTY
        if self.failures:
            return COOLDOWN_PENALTY if self.trial else 0
        if (left := self.recovered_at + SLOW_START - now) > 0:
            return ceil(SLOW_START_PENALTY * left / SLOW_START)
        self.healthy = True
        return 0

    def state(self, now: float) -> str:
        """One of `in`, `out`, `cooling`, `resting`, `trial` and `starting`."""
        if self.out:
            return "out"
        if self.failures and self.rests_until > now:
            return "cooling" if self.failures >= COOLDOWN_AFTER else "resting"
        if self.trial:
            return "trial"
        return "starting" if self.recovered_at + SLOW_START > now else "in"
