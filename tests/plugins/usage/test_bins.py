"""Distributions that are added up by adding."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from plugins.usage import bins

TIMES = st.lists(st.integers(1, 3_600_000_000), max_size=50)


def of(times: list[int]) -> Counter[int]:
    return bins.counted(times)


@given(TIMES, TIMES)
def test_one_text_after_another_is_the_sum_of_both(some: list[int], others: list[int]) -> None:
    both = bins.written(of(some)) + bins.written(of(others))
    assert bins.read(both) == of(some + others)


@given(st.lists(st.integers(1, 3_600_000_000), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_right_to_five_percent(times: list[int], share: float) -> None:
    exact = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    found = bins.percentile(of(times), share)
    assert found is not None and 0.95 <= found / exact <= 1.05


def test_of_nothing_there_are_none() -> None:
    assert bins.percentile(Counter(), 0.5) is None and bins.written(Counter({3: 0})) == ""
