"""Billionths of a currency's unit as JSON: numbers with all their digits, made from whole ones and not from floats."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

import orjson

DAY: Final = 86_400


def money(billionths: int | None) -> orjson.Fragment | None:
    """As a number, such as 0.000105; what reads it as a decimal loses nothing."""
    return None if billionths is None else orjson.Fragment(spelled(billionths))


def spelled(billionths: int) -> str:
    text = f"{Decimal(billionths).scaleb(-9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def midnight(day: date) -> int:
    """Unix seconds at which a day begins, in UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def day_of(seconds: float) -> date:
    return datetime.fromtimestamp(seconds, UTC).date()


def begin(period: str, today: date) -> date:
    """The first day of the day, week or month that a day is in; weeks begin on Monday."""
    if period == "week":
        return today - timedelta(today.weekday())
    return today.replace(day=1) if period == "month" else today


def next_month(day: date) -> date:
    """The first day after a day's month."""
    return (day.replace(day=1) + timedelta(32)).replace(day=1)
