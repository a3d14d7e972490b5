"""What becomes of calls at the hosts of a pool, and what that says of these."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.clock import Clock, Deadline
from proxy.errors import UpstreamError
from proxy.meter import LATE
from proxy.types import Events
from proxy.upstreams.sharing import Sharing
from proxy.upstreams.standing import Standing

FAULTS: Final = ("server", "cut", "load", "memory")
"""Failures that speak against a host."""


class Outcomes:
    """sharing: where other processes are told."""

    def __init__(self, clock: Clock, sharing: Sharing | None) -> None:
        self.clock = clock
        self.sharing = sharing

    def failed(self, one: Standing) -> None:
        """A host that fails at once has always the fewest calls; let others go before it for a while."""
        seconds = one.failed(self.clock.monotonic())
        if seconds and self.sharing is not None:
            self.sharing.cools(one, seconds)

    def answered(self, one: Standing) -> None:
        if one.answered(self.clock.monotonic()) and self.sharing is not None:
            self.sharing.is_well(one)

    def ended(self, one: Standing, error: BaseException, hasty: bool) -> None:
        """A call has ended there before anything came of it.  hasty: it should have begun soon."""
        if is_its_fault(error, hasty):
            self.failed(one)
        else:
            one.trial = False  # it has said nothing of the host

    def begun(self, one: Standing) -> None:
        """A stream has begun there: the trial of a host is over, but not yet a row of its failures."""
        if one.trial:
            self.answered(one)

    async def watched(self, one: Standing, deadline: Deadline | None, source: Events) -> Events:
        """A stream that breaks off or hangs midway speaks against its host as one does that never began."""
        try:
            async for event in source:
                yield event
        except (UpstreamError, asyncio.CancelledError) as error:
            paused = deadline is None or self.clock.monotonic() < deadline.at
            if is_its_fault(error, paused):
                self.failed(one)
            raise
        if not one.well:
            self.answered(one)


def is_its_fault(error: BaseException, hasty: bool) -> bool:
    """Whether what ended a call speaks against its host.

    hasty: whether more should have come soon.  Where that takes too long the host hangs, and would have its share of
    calls for ever.
    """
    return error.cause in FAULTS if isinstance(error, UpstreamError) else hasty and LATE in error.args
