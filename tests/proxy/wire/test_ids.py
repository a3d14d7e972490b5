"""Ids are unique, and those of calls sort by time."""

from __future__ import annotations

import re

import pytest

from proxy.wire import ids


def test_ids_of_calls_sort_by_time_and_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for milliseconds in (5, 5, 6, 1_800_000_000_000):
        monkeypatch.setattr(ids, "time_ns", lambda now=milliseconds: now * 1_000_000 + 999)
        made.append(ids.timely_id("req_"))
    assert len(set(made)) == 4 and all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in made)
    assert sorted(made) == [*sorted(made[:2]), *made[2:]]
