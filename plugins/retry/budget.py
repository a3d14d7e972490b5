"""How many further tries a process may make, so that an outage is not multiplied by its callers' number."""

from __future__ import annotations

from typing import Final

from proxy.host import Clock

RESERVE: Final = 100.0
"""Tries that may be saved up."""
EVER: Final = 1.0
"""Tries a second that are always there, for a server with few calls."""


class Budget:
    """Every call earns a share of a try; every further try takes a whole one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.left = RESERVE / 10
        self.at = clock.monotonic()

    def earn(self, share: float) -> None:
        self.left += share

    def spend(self) -> bool:
        """Whether another try may be made; it is then taken."""
        now = self.clock.monotonic()
        self.left = min(RESERVE, self.left + EVER * (now - self.at))
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
