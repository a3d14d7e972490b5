"""Which process holds the lease of a job, and whether that process is still alive."""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from typing import Final

from proxy.clock import Clock

MOST: Final = 1000
"""Leases that are remembered."""


class LeaseHolder:
    """The name with which this process signs leases.  server: a unique id, which changes with every restart."""

    def __init__(self, server: str) -> None:
        self.here = f"{socket.gethostname()}:"
        """The prefix of the names of all processes on this machine."""
        self.name = f"{self.here}{os.getpid()}:{server}"

    def dead(self, holder: str) -> bool:
        """Whether the holder is a process of this machine that has ended, so that its lease is free at once."""
        if holder == self.name or not holder.startswith(self.here):
            return False
        process = int(holder.split(":")[-2])
        if process == os.getpid():  # an earlier server: in a container, all have the same process id
            return True
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class SilenceTimer:
    """Observes for how long expired leases have not been renewed.

    An expired lease alone does not show that its holder is dead: the clock may have been set forward, or be that of
    another machine.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.seen: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def lasts(self, job: str, until: int) -> bool:
        """Whether the job's lease has had this same end, `until`, for at least `seconds` seconds of observation."""
        now = self.clock.monotonic()
        if (known := self.seen.get(job)) is not None and known[0] == until:
            return now - known[1] >= self.seconds
        self.seen[job] = until, now
        self.seen.move_to_end(job)
        if len(self.seen) > MOST:
            self.seen.popitem(last=False)
        return False
