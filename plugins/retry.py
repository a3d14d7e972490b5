"""Ask again when an upstream fails before its first event."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt

from proxy.config import Strict
from proxy.errors import Cause, UpstreamError
from proxy.host import Host
from proxy.types import Call, Handler, Reply


class Retry:
    place = "tries"

    class Settings(Strict):
        attempts: PositiveInt = 3
        """How often a call is tried in all."""
        wait: NonNegativeFloat = 0.5
        """Seconds of the first wait at most; each further one may be twice as long.  The wait itself is drawn
        evenly from nothing to that (full jitter), so that many callers do not come back at once."""
        max_wait: NonNegativeFloat = 30.0
        """Seconds that no wait exceeds, unless the upstream asked for longer; then the error is given at once."""
        on: tuple[Cause, ...] = ("connect", "overloaded", "load", "server", "cut", "invalid_answer")
        """Which failures are worth another try.  Not listed: `timeout`, which would double the wait of the
        caller, and `memory`, which does not heal by asking again.  A fault of the request never is."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.clock = host.clock

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        try:
            return await call_next(call)
        except UpstreamError as error:
            return await self.again(call, call_next, error)

    async def again(self, call: Call, call_next: Handler, error: UpstreamError) -> Reply:
        """Every further attempt, after the first failed with `error`."""
        for attempt in range(2, self.settings.attempts + 1):
            wait = self.wait(attempt - 1, error)
            wanted = error.cause in self.settings.on and error.again is not False
            if wanted and wait > self.settings.max_wait:
                raise counted(error, attempt - 1)  # the client is told how long, and may come back then
            if not wanted or not self.in_time(wait, call):
                raise final(error, attempt - 1)
            call.progress(f"trying again after: {error.code}")
            await self.clock.sleep(wait)
            try:
                return (await call_next(call)).noting(attempts=str(attempt))
            except UpstreamError as failed:
                error = failed
        raise final(error, self.settings.attempts)

    def wait(self, attempt: int, error: UpstreamError) -> float:
        """Seconds before the next try; never sooner than the upstream asked for."""
        longest = min(self.settings.max_wait, self.settings.wait * 2.0 ** (attempt - 1))
        return max(self.clock.uniform(0, longest), error.wait or 0.0)

    def in_time(self, wait: float, call: Call) -> bool:
        return call.deadline is None or self.clock.monotonic() + wait < call.deadline


def final(error: UpstreamError, attempts: int) -> UpstreamError:
    """The client shall not begin anew what was tried here: its own retries would multiply ours."""
    error.again = False
    return counted(error, attempts)


def counted(error: UpstreamError, attempts: int) -> UpstreamError:
    if attempts > 1:
        error.facts["attempts"] = str(attempts)
    return error
