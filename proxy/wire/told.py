"""What an upstream tells, by its kind: whatever it sends instead must not reach those who count and add up."""

from __future__ import annotations

from typing import Final

from proxy.types import JSON

MOST: Final = 2**53
"""More than any answer takes, in tokens or in nanoseconds, and less than stores and databases hold."""


def text(value: JSON) -> str:
    """Raises TypeError for what is none, which makes a document unreadable."""
    if type(value) is not str:
        raise TypeError
    return value


def number(value: JSON) -> float:
    """The same of a number."""
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def count(value: JSON) -> int | None:
    """How many there were; None for what says nothing of that, such as -1.  An answer is not lost over it."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < MOST else None
