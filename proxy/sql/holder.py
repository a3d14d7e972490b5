"""Who does a job that several processes could do: by what it signs, and whether it still lives."""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from typing import Final

from proxy.clock import Clock

MOST: Final = 1000
"""Leases that are remembered."""


class Holder:
    """server: an id that no other server has, nor this one after a restart."""

    def __init__(self, server: str) -> None:
        self.here = f"{socket.gethostname()}:"
        """How the names of all processes of this machine begin."""
        self.name = f"{self.here}{os.getpid()}:{server}"

    def dead(self, holder: str) -> bool:
        """Whether it is a process of this machine that has ended: then nobody need wait for its lease."""
        if holder == self.name or not holder.startswith(self.here):
            return False
        process = int(holder.split(":")[-2])
        if process == os.getpid():  # in a container every server has the same
            return True
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class Silence:
    """For how long leases that have ended by the clock were not renewed, as far as this process has seen.

    A clock that was set forward, or is another machine's, ends those of living processes, too.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.seen: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def lasts(self, job: str, until: int) -> bool:
        """Whether its lease ended at the same time when it was looked at so many seconds ago."""
        now = self.clock.monotonic()
        if (known := self.seen.get(job)) is not None and known[0] == until:
            return now - known[1] >= self.seconds
        self.seen[job] = until, now
        self.seen.move_to_end(job)
        if len(self.seen) > MOST:
            self.seen.popitem(last=False)
        return False
