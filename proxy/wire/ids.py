"""Ids that are unique, not secret: a system call for each would cost more than reading a request."""

from __future__ import annotations

from random import Random, SystemRandom
from time import time_ns

_random = Random(SystemRandom().getrandbits(256))  # noqa: S311  (nothing is guarded by an id)


def new_id(prefix: str) -> str:
    """The prefix and 32 hex digits; the prefix brings its own separator."""
    return f"{prefix}{_random.getrandbits(128):032x}"


def timely_id(prefix: str) -> str:
    """The same, later ones after earlier ones: in an index of a table those of one time then stand together.

    12 digits are milliseconds since 1970.
    """
    return f"{prefix}{time_ns() // 1_000_000:012x}{_random.getrandbits(80):020x}"
