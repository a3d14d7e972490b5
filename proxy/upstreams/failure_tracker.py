"""Derives the health of a pool's hosts from the outcomes of their calls."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.clock import Clock, Deadline
from proxy.errors import UpstreamError
from proxy.meter import LATE
from proxy.types import Events
from proxy.upstreams.cooldown_sharing import CooldownSharing
from proxy.upstreams.host_state import HostState

HOST_FAULTS: Final = ("server", "cut", "load", "memory")
"""Causes of errors that count as failures of the host."""


class FailureTracker:
    """sharing: informs other processes of cool-downs; None if nothing is shared."""

    def __init__(self, clock: Clock, sharing: CooldownSharing | None) -> None:
        self.clock = clock
        self.sharing = sharing

    def record_failure(self, one: HostState) -> None:
        """Let the host rest: one that fails at once has the fewest calls, and would otherwise attract all of them."""
        seconds = one.record_failure(self.clock.monotonic())
        if seconds and self.sharing is not None:
            self.sharing.report_cooldown(one, seconds)

    def record_success(self, one: HostState) -> None:
        if one.record_success(self.clock.monotonic()) and self.sharing is not None:
            self.sharing.report_recovery(one)

    def record_error(self, one: HostState, error: BaseException, timeout_counts: bool) -> None:
        """Record that a call failed before its first event.  timeout_counts: whether a timeout is a host's failure."""
        if is_host_fault(error, timeout_counts):
            self.record_failure(one)
        else:
            one.trial = False  # the trial was inconclusive

    def stream_began(self, one: HostState) -> None:
        """Record that a stream has begun: a trial then succeeds.  Other failures are reset at the stream's end."""
        if one.trial:
            self.record_success(one)

    async def watch_stream(self, one: HostState, deadline: Deadline | None, source: Events) -> Events:
        """Pass a stream on.  Breaking off or hanging midway counts as a failure of its host, ending well as success."""
        try:
            async for event in source:
                yield event
        except (UpstreamError, asyncio.CancelledError) as error:
            between_events = deadline is None or self.clock.monotonic() < deadline.at
            if is_host_fault(error, between_events):
                self.record_failure(one)
            raise
        if not one.healthy:
            self.record_success(one)


def is_host_fault(error: BaseException, timeout_counts: bool) -> bool:
    """Whether an error counts as a failure of the host.

    timeout_counts: whether a timeout does, because more should have arrived soon.  A host that hangs would otherwise
    keep getting its share of calls.
    """
    return error.cause in HOST_FAULTS if isinstance(error, UpstreamError) else timeout_counts and LATE in error.args
