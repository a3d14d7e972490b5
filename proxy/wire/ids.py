"""Ids that are unique but not secret, because a system call for each would cost more than parsing a request."""

from __future__ import annotations

from random import Random, SystemRandom
from time import time_ns

_random = Random(SystemRandom().getrandbits(256))  # noqa: S311  (ids are not secrets)


def new_id(prefix: str) -> str:
    """The prefix, which includes any separator, and 32 hex digits."""
    return f"{prefix}{_random.getrandbits(128):032x}"


def timely_id(prefix: str) -> str:
    """The same, but ids sort by time, so that rows of the same time are adjacent in a table's index.

    The first 12 digits are milliseconds since 1970.
    """
    return f"{prefix}{time_ns() // 1_000_000:012x}{_random.getrandbits(80):020x}"
