"""Tries again when an upstream fails before its first event."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import orjson
from aiohttp import web
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from plugins.retry.budget import Budget
from plugins.retry.record import HOURS, Record
from proxy.announcements import Attempt, AttemptsAsked, FellBack
from proxy.attempts import tried
from proxy.config import Strict
from proxy.errors import BadCall, Busy, Cause, UpstreamError
from proxy.host import Host
from proxy.types import JSON, Call, Handler, Reply, Route

FIELD: Final = "use_retry"
KEPT_HOURS: Final = 24 * 366
"""Maximum `hours` of the statistics if a plugin records attempts."""


class Since(Strict):
    hours: PositiveFloat = 24.0
    """How far back."""


class Retry:
    place = "tries"
    announces = True
    fields = flags = frozenset({FIELD})

    class Settings(Strict):
        attempts: PositiveInt = 3
        """Maximum tries of a call, including the first."""
        wait: NonNegativeFloat = 0.5
        """Maximum seconds of the first wait; for each further one, twice as long.  The actual wait is random between
        zero and that (full jitter), so that many callers do not come back at once."""
        max_wait: NonNegativeFloat = 30.0
        """Maximum seconds of any wait.  If the upstream asks for a longer one, the error is returned at once."""
        on: tuple[Cause, ...] = ("connect", "overloaded", "load", "server", "cut", "invalid_answer")
        """Failures after which a call is tried again.  Not included by default: `timeout`, which would double the
        caller's wait, and `memory`, which another try does not cure.  Faults of the request are never tried again."""
        budget: NonNegativeFloat = 0.2
        """Retries per call, over all calls of the process: in an outage the upstream gets a fifth more calls, and not
        three times as many.  One a second is always allowed, and up to a hundred are saved up."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.clock = host.clock
        self.monotonic = host.clock.monotonic
        self.announce = host.announce
        self.budget = host.process_state("retry budget", lambda: Budget(host.clock))
        self.record = host.process_state("retry record", lambda: Record(host.clock))
        host.on(Attempt, self.record.attempted)
        host.on(FellBack, self.record.fell_back)

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        further = wanted(call)
        self.budget.earn(self.settings.budget)
        try:
            return await tried(call, call_next, self.host)
        except UpstreamError as error:
            if not further:
                raise
            return await self.again(call, call_next, error)

    async def again(self, call: Call, call_next: Handler, error: UpstreamError) -> Reply:
        """Make the remaining attempts, after the first failed with `error`."""
        for attempt in range(2, self.settings.attempts + 1):
            wait = self.wait(attempt - 1, error)
            worth = error.cause in self.settings.on and error.again is not False
            if worth and wait > self.settings.max_wait:
                raise counted(error, attempt - 1)  # the client is told how long to wait, and may retry then
            if not worth or not self.in_time(wait, call):
                raise final(error, attempt - 1)
            if not self.budget.spend():
                spent = final(error, attempt - 1)
                spent.facts["retry"] = "out of budget"
                raise spent
            call.progress(f"trying again after: {error.code}")
            await self.clock.sleep(wait)
            try:
                return (await tried(call, call_next, self.host, attempt)).noting(attempts=str(attempt))
            except UpstreamError as failed:
                error = failed
        raise final(error, self.settings.attempts)

    def wait(self, attempt: int, error: UpstreamError) -> float:
        """Seconds before the next attempt; at least what the upstream asked for."""
        longest = min(self.settings.max_wait, self.settings.wait * 2.0 ** (attempt - 1))
        return max(self.clock.uniform(0, longest), error.wait or 0.0)

    def in_time(self, wait: float, call: Call) -> bool:
        return call.deadline is None or self.monotonic() + wait < call.deadline.at

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/retry/stats", self.stats)

    async def stats(self, request: web.BaseRequest) -> web.StreamResponse:
        """Attempts, successes after a retry, fallbacks and failures, by model and upstream."""
        hours = self.host.requests.query(request, Since).hours
        asked = AttemptsAsked(hours)
        self.announce(asked)
        most = KEPT_HOURS if asked.answers else HOURS
        if hours > most:
            message = f"Invalid 'hours': expected {most} at most."
            raise BadCall(message, param="hours", code="invalid_value")
        return web.Response(body=orjson.dumps(await self.statistics(asked)), content_type="application/json")

    async def statistics(self, asked: AttemptsAsked) -> dict[str, JSON]:
        """From the records of a plugin if there is one; this process's own counts while those are unavailable."""
        for records in asked.answers:
            with suppress(Busy):
                return await records()
        return self.record.statistics(min(asked.hours, HOURS))


def wanted(call: Call) -> bool:
    """Whether the caller allows retries."""
    return not call.extra or call.extra.get(FIELD) is not False


def final(error: UpstreamError, attempts: int) -> UpstreamError:
    """The error, with the hint that the client should not retry: its retries would multiply ours."""
    made = counted(error, attempts)
    made.again = False
    return made


def counted(error: UpstreamError, attempts: int) -> UpstreamError:
    made = error.copied()
    if attempts > 1:
        made.facts["attempts"] = str(attempts)
    return made
