"""Limits how long a call may take: to connect, to begin, between two events, in all."""

from __future__ import annotations

import asyncio
from math import inf

from pydantic import PositiveFloat

from proxy.config import Strict
from proxy.errors import UpstreamError
from proxy.host import Clock, Host
from proxy.meter import LATE
from proxy.streams import Replay
from proxy.types import Call, Deadline, Events, Handler, Reply

TICK = 0.05
"""Seconds between two checks of the waits in progress."""


class Timeouts:
    class Settings(Strict):
        connect: PositiveFloat | None = 5.0
        """Seconds that the upstream may take to accept the connection."""
        first_event: PositiveFloat | None = 300.0
        """Seconds until a stream begins, including the loading of a cold model.  A whole answer has no first event
        before its last one, so only `total` limits it."""
        between_events: PositiveFloat | None = 60.0
        """Seconds that a stream may pause."""
        total: PositiveFloat | None = 1800.0
        """Seconds that the whole call may take."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.clock = host.clock
        self.sweep = WatchTimer(host.clock)

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        limits, deadline, watches = self.settings, self.deadline(call), self.sweep.watches
        watch = Watch(deadline, limits.first_event if call.stream else None, call.deadline)
        watches.add(watch)
        if self.sweep.timer is None:
            self.sweep.look()
        try:
            reply = await call_next(call.but(deadline=deadline, connect_timeout=limits.connect or call.connect_timeout))
        except asyncio.CancelledError:
            watch.explain("did not begin in time")
            raise
        finally:
            watches.discard(watch)
        pause = limits.between_events if call.stream else None
        if type(reply.events) is Replay or (pause is None and deadline is None):
            return reply  # complete already, or without a limit
        return reply.through(lambda source: self.watched(source, pause, deadline, call.deadline))

    def deadline(self, call: Call) -> Deadline | None:
        """The deadline for the call; an earlier one of the caller's own remains in force."""
        if self.settings.total is None:
            return call.deadline
        return Deadline(self.clock.monotonic() + self.settings.total, call.deadline)

    async def watched(
        self, source: Events, pause: float | None, deadline: Deadline | None, callers: Deadline | None
    ) -> Events:
        watch = Watch(deadline, pause, callers)
        self.sweep.watches.add(watch)
        if self.sweep.timer is None:
            self.sweep.look()
        try:
            while True:
                watch.begin()
                try:
                    event = await anext(source)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    watch.explain(f"paused for more than {pause or 0:g} seconds")
                    raise
                watch.waiting = False
                yield event
        finally:
            self.sweep.watches.discard(watch)


class Watch:
    """Cancels a wait that takes too long.  Inactive between two waits: a slow consumer is not the upstream's fault."""

    __slots__ = ("callers", "deadline", "due", "fresh", "limit", "limited", "rang", "task", "waiting")

    def __init__(self, deadline: Deadline | None, limit: float | None, callers: Deadline | None) -> None:
        """Starts with the current task, for at most `limit` seconds.  callers: the caller's own deadline."""
        self.deadline = deadline
        self.callers = callers
        self.limit = limit
        self.due = self.limited = inf
        self.rang = False
        self.waiting = self.fresh = True
        """fresh: this wait began after the last check, which sets its limit: a wait need not read the clock itself."""
        self.task = asyncio.current_task()

    def begin(self) -> None:
        """Start another wait, which may be in another task."""
        self.waiting = self.fresh = True
        self.task = asyncio.current_task()

    def look(self, now: float) -> None:
        if not self.waiting or self.rang:
            return
        if self.fresh:
            self.fresh = False
            self.limited = inf if self.limit is None else now + self.limit
        self.due = self.limited if self.deadline is None else min(self.limited, self.deadline.at)
        if now >= self.due and self.task is not None:
            self.rang = True
            self.task.cancel(LATE)

    def explain(self, what: str) -> None:
        """Raises a timeout error if this watch cancelled the task; other cancellations remain what they are."""
        if self.rang and self.task is not None and self.task.uncancel() == 0:
            late = self.due < self.limited
            error = UpstreamError(f"The answer {'was not complete in time' if late else what}.", "timeout")
            if late and self.callers is not None and self.due == self.callers.at:
                error.again = False  # the client's own deadline has passed: nobody waits for another attempt
            raise error from None


class WatchTimer:
    """One timer for all watches, so that a call needs none of its own; late by at most twice TICK."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.watches: set[Watch] = set()
        self.timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Check every watch now, and again after TICK while there is any."""
        now = self.clock.monotonic()
        for watch in self.watches:
            watch.look(now)
        self.timer = asyncio.get_running_loop().call_later(TICK, self.look) if self.watches else None
