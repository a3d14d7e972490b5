"""Days and months of UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from msgspec import Struct

from plugins.limits.rules import Period
from proxy.host import Clock


class Span(Struct, frozen=True):
    """One day or month.  name: such as `2025-03-09` or `2025-03`; begins, ends: Unix seconds."""

    name: str
    begins: float
    ends: float


class Calendar:
    """The current day and month, cached until midnight UTC."""

    def __init__(self, clock: Clock) -> None:
        self.time = clock.time
        self.spans: dict[str, Span] = {}
        self.until = float("-inf")

    def span(self, period: Period) -> Span:
        now = self.time()
        if not self.spans or not self.spans["day"].begins <= now < self.until:
            self.spans = {"day": day(now), "month": month(now)}
            self.until = self.spans["day"].ends
        return self.spans[period]


def day(now: float) -> Span:
    begins = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Span(begins.strftime("%Y-%m-%d"), begins.timestamp(), (begins + timedelta(days=1)).timestamp())


def month(now: float) -> Span:
    begins = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    ends = (begins + timedelta(days=32)).replace(day=1)
    return Span(begins.strftime("%Y-%m"), begins.timestamp(), ends.timestamp())


def begin_of(name: str) -> float:
    """When the span of this name began."""
    return datetime.strptime(name if len(name) > 7 else f"{name}-01", "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
