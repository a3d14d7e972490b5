"""Distributions stored as text, which are added up by concatenation."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from plugins.usage import bins

TIMES = st.lists(st.integers(1, 3_600_000_000), max_size=50)


def counts_of(times: list[int]) -> Counter[int]:
    return bins.counted(times)


@given(TIMES, TIMES)
def test_concatenated_texts_are_the_sum_of_both(some: list[int], others: list[int]) -> None:
    both = bins.written(counts_of(some)) + bins.written(counts_of(others))
    assert bins.read(both) == counts_of(some + others)


@given(st.lists(st.integers(1, 3_600_000_000), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_right_to_five_percent(times: list[int], share: float) -> None:
    exact = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    found = bins.percentile(counts_of(times), share)
    assert found is not None and 0.95 <= found / exact <= 1.05


def test_an_empty_distribution_has_no_percentiles() -> None:
    assert bins.percentile(Counter(), 0.5) is None and bins.written(Counter({3: 0})) == ""
