"""Checks of the types of values from upstreams, so that wrong ones do not reach records and sums."""

from __future__ import annotations

from typing import Final

from proxy.types import JSON

MOST: Final = 2**53
"""An upper bound for tokens and nanoseconds: more than any answer takes, less than databases can store."""


def text(value: JSON) -> str:
    """A text.  Raises TypeError for anything else, so that the document counts as unreadable."""
    if type(value) is not str:
        raise TypeError
    return value


def number(value: JSON) -> float:
    """A number.  Raises TypeError for anything else."""
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def count(value: JSON) -> int | None:
    """A count; None for an invalid value such as -1, so that an answer is not lost because of it."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < MOST else None
