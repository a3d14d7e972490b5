"""Distributions of durations as counts in fixed bins, so that those of many calls and days can be added up.

As text, bins with their counts: `57:3 60:1 `.  The concatenation of two texts is their sum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from functools import partial
from math import ceil
from typing import Final

FINENESS: Final = 8
"""Bins per doubling of the duration: each is about 9 % wide."""
LAST: Final = 8 * 32
"""The last bin: 2^32 µs, more than an hour, and longer."""


BEGINS: Final = [ceil(2.0 ** (number / FINENESS)) for number in range(1, LAST + 1)]
"""The lower bound of each bin but the first, in µs."""


def counted(times: Iterable[int]) -> Counter[int]:
    """The number of durations in each bin.  times: in µs."""
    return Counter(map(partial(bisect_right, BEGINS), times))


def middle(number: int) -> float:
    """The geometric middle of a bin, in µs."""
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
    """The duration in µs that this share of all did not exceed, accurate to 5 %; None if there are none."""
    rank, passed = share * bins.total(), 0
    for number, count in sorted(bins.items()):
        passed += count
        if count and passed >= rank:
            return middle(number)
    return None
