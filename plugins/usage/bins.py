"""Distributions of times as counts in fixed bins, so that those of many calls and days are added up by adding.

As text: `57:3 60:1 `, bins and counts; one text after another is the sum of both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from functools import partial
from math import ceil
from typing import Final

FINENESS: Final = 8
"""Bins between a time and twice that: each is a twelfth as wide as where it begins, some 9 %."""
LAST: Final = 8 * 32
"""Of 2^32 µs, more than an hour, and longer."""


BEGINS: Final = [ceil(2.0 ** (number / FINENESS)) for number in range(1, LAST + 1)]
"""The first µs of every bin but the first one."""


def counted(times: Iterable[int]) -> Counter[int]:
    """times: in µs."""
    return Counter(map(partial(bisect_right, BEGINS), times))


def middle(number: int) -> float:
    """The time that stands for a bin, in µs."""
    return float(2.0 ** ((number + 0.5) / FINENESS))


def read(text: str) -> Counter[int]:
    found: Counter[int] = Counter()
    numbers = list(map(int, text.replace(":", " ").split()))
    for number, count in zip(numbers[::2], numbers[1::2], strict=True):
        found[number] += count
    return found


def written(bins: Counter[int]) -> str:
    return "".join([f"{number}:{count} " for number, count in sorted(bins.items()) if count])


def percentile(bins: Counter[int], share: float) -> float | None:
    """The time in µs that so many of all were not slower than, right to 5 %; None where there are none."""
    rank, passed = share * bins.total(), 0
    for number, count in sorted(bins.items()):
        passed += count
        if count and passed >= rank:
            return middle(number)
    return None
