from __future__ import annotations

import pytest

from proxy.announcements import FellBack
from proxy.host import EventBus, WorkerInfo


@pytest.mark.parametrize(("whole", "count"), [(1, 1), (8, 3), (4, 4), (7, 2), (3, 5)])
def test_the_shares_of_all_processes_add_up(whole: int, count: int) -> None:
    shares = [WorkerInfo("s", index, count).share(whole) for index in range(count)]
    assert sum(shares) == whole and max(shares) - min(shares) <= 1


def test_an_exception_in_a_listener_affects_neither_other_listeners_nor_the_sender(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, heard = EventBus(), list[FellBack]()
    bus.on(FellBack, lambda event: 1 / 0)  # type: ignore[arg-type]  # wrong on purpose
    bus.on(FellBack, heard.append)
    bus.announce(event := FellBack("1", "ann", "demo", "spare", "x"))
    assert heard == [event] and f"a listener for FellBack failed: {__name__}.test_an_exception" in caplog.text
