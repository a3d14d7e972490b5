"""Limits how long a call may take: to connect, to begin, between two events, in all."""

from __future__ import annotations

import asyncio

from pydantic import PositiveFloat

from proxy.config import Strict
from proxy.errors import UpstreamError
from proxy.host import Host
from proxy.types import Call, Events, Handler, Reply


class Timeouts:
    class Settings(Strict):
        connect: PositiveFloat | None = 5.0
        """Seconds that the upstream may take to accept the connection."""
        first_event: PositiveFloat | None = 300.0
        """Seconds until a stream begins, with the loading of a cold model.  A whole answer has no first event
        before its last one, so that only `total` limits it."""
        between_events: PositiveFloat | None = 60.0
        """Seconds that a stream may pause."""
        total: PositiveFloat | None = 1800.0
        """Seconds that the whole call may take."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.clock = host.clock

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        deadline = self.deadline(call)
        limits = self.settings
        first = limits.first_event if call.stream else None
        begin = min((limit for limit in (self.after(first), deadline) if limit is not None), default=None)
        call = call.but(deadline=deadline, connect_timeout=limits.connect or call.connect_timeout)
        try:
            async with asyncio.timeout_at(begin):
                reply = await call_next(call)
        except TimeoutError:
            what = "did not begin" if begin != deadline else "was not complete"
            raise UpstreamError(f"The answer {what} in time.", "timeout") from None
        if (limits.between_events is None and deadline is None) or not call.stream:
            return reply
        return reply.through(lambda source: self.watched(source, deadline))

    def after(self, seconds: float | None) -> float | None:
        return None if seconds is None else self.clock.monotonic() + seconds

    def deadline(self, call: Call) -> float | None:
        """An outer limit that is earlier stays."""
        own = self.after(self.settings.total)
        return own if call.deadline is None else call.deadline if own is None else min(own, call.deadline)

    async def watched(self, source: Events, deadline: float | None) -> Events:
        watch = Watch(self.settings.between_events, deadline)
        try:
            while True:
                watch.begin()
                try:
                    event = await anext(source)
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    watch.explain()
                    raise
                watch.end()
                yield event
        finally:
            watch.close()


class Watch:
    """One timer for a whole stream, looked at when it rings, so that an event costs no timer of its own.

    Rings only while the stream is waited for; a slow consumer is no fault of the upstream.
    """

    def __init__(self, pause: float | None, deadline: float | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.pause = pause
        self.deadline = deadline
        self.due: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[object] | None = None
        self.rang = False

    def begin(self) -> None:
        now = self.loop.time()
        self.due = self.next(now)
        self.task = asyncio.current_task()
        if self.timer is None:
            self.timer = self.loop.call_at(self.due, self.ring)

    def next(self, now: float) -> float:
        ends = [now + self.pause] if self.pause is not None else []
        return min([*ends, self.deadline] if self.deadline is not None else ends)

    def end(self) -> None:
        self.due = None

    def ring(self) -> None:
        now = self.loop.time()
        due = self.due if self.due is not None else self.next(now)
        if self.due is not None and due <= now and self.task is not None:
            self.rang = True
            self.task.cancel()
        else:
            self.timer = self.loop.call_at(max(due, now + 0.01), self.ring)

    def explain(self) -> None:
        """Turns the cancellation that this watch made into an error; another's stays what it is."""
        if self.rang and self.task is not None and self.task.uncancel() == 0:
            late = self.deadline is not None and self.loop.time() >= self.deadline
            what = "was not complete in time" if late else f"paused for more than {self.pause:g} seconds"
            raise UpstreamError(f"The answer {what}.", "timeout") from None

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
