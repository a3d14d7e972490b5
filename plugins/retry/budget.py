"""How many retries a process may make, so that an outage does not multiply the load of the upstreams."""

from __future__ import annotations

from typing import Final

from proxy.host import Clock

RESERVE: Final = 100.0
"""Retries that can be saved up."""
EVER: Final = 1.0
"""Retries per second that are always available, for a server with few calls."""


class Budget:
    """Every call earns a fraction of a retry; every retry costs a whole one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.left = RESERVE / 10
        self.at = clock.monotonic()

    def earn(self, share: float) -> None:
        self.left += share

    def spend(self) -> bool:
        """Take one retry from the budget; False if there is none."""
        now = self.clock.monotonic()
        self.left = min(RESERVE, self.left + EVER * (now - self.at))
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
