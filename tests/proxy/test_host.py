from __future__ import annotations

import pytest

from proxy.host import Place


@pytest.mark.parametrize(("whole", "count"), [(1, 1), (8, 3), (4, 4), (7, 2), (3, 5)])
def test_the_shares_of_all_processes_add_up(whole: int, count: int) -> None:
    shares = [Place("s", index, count).share(whole) for index in range(count)]
    assert sum(shares) == whole and max(shares) - min(shares) <= 1
