"""Days, weeks and months in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

from proxy.prices import money as money
from proxy.prices import spelled as spelled

DAY: Final = 86_400


def midnight(day: date) -> int:
    """Unix seconds at which a day begins, in UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def day_of(seconds: float) -> date:
    return datetime.fromtimestamp(seconds, UTC).date()


def begin(period: str, today: date) -> date:
    """The first day of the day, week or month that contains `today`; weeks begin on Monday."""
    if period == "week":
        return today - timedelta(today.weekday())
    return today.replace(day=1) if period == "month" else today


def next_month(day: date) -> date:
    """The first day after a day's month."""
    return (day.replace(day=1) + timedelta(32)).replace(day=1)
