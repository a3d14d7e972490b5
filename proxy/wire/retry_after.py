"""How long a server asks clients to wait before a retry.  Source: RFC 9110, 10.2.3, and OpenAI's `retry-after-ms`."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

MOST: Final = 86_400.0
"""Maximum seconds; after a day a server is tried again in any case."""
NUMBER: Final = re.compile(r"\d+(\.\d*)?", re.ASCII)


def seconds(told: bytes) -> float | None:
    """`Retry-After`, a number, also with a fraction, or a date, as seconds from now; None if it is neither."""
    text = told.decode("latin-1").strip()
    return bounded(float(text)) if NUMBER.fullmatch(text) else until(text)


def milliseconds(told: bytes) -> float | None:
    """`retry-after-ms` in seconds; None if it is not a number."""
    text = told.decode("latin-1").strip()
    return bounded(float(text) / 1000) if NUMBER.fullmatch(text) else None


def until(date: str) -> float | None:
    """Seconds until a date, 0 if it has passed; None if it is not a date."""
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return None
    return bounded((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - time.time())


def bounded(seconds: float) -> float:
    return min(MOST, max(0.0, seconds))
