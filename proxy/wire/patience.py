"""How long a server wants to be left alone.  Source: RFC 9110, 10.2.3, and OpenAI's `retry-after-ms`."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

MOST: Final = 86_400.0
"""Seconds that are believed; who names more is asked again after a day."""
NUMBER: Final = re.compile(r"\d+(\.\d*)?", re.ASCII)


def seconds(told: bytes) -> float | None:
    """What `Retry-After` says, in seconds from now: a number, also with a fraction, or a date.  None is neither."""
    text = told.decode("latin-1").strip()
    return bounded(float(text)) if NUMBER.fullmatch(text) else until(text)


def milliseconds(told: bytes) -> float | None:
    """What `retry-after-ms` says, in seconds."""
    text = told.decode("latin-1").strip()
    return bounded(float(text) / 1000) if NUMBER.fullmatch(text) else None


def until(date: str) -> float | None:
    """0 where it is over."""
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return None
    return bounded((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - time.time())


def bounded(seconds: float) -> float:
    return min(MOST, max(0.0, seconds))
