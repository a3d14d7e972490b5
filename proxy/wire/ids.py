"""Ids that are unique, not secret: a system call for each would cost more than reading a request."""

from __future__ import annotations

from random import Random, SystemRandom

_random = Random(SystemRandom().getrandbits(256))  # noqa: S311  (nothing is guarded by an id)


def new_id(prefix: str) -> str:
    """The prefix and 32 hex digits; the prefix brings its own separator."""
    return f"{prefix}{_random.getrandbits(128):032x}"
