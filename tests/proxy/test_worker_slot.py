"""When a dead worker is restarted."""

from __future__ import annotations

import signal
import socket

import pytest

from proxy import worker_slot
from proxy.acceptor import Acceptor
from proxy.host import WorkerInfo
from proxy.worker_messages import Heartbeat, Ready
from proxy.worker_slot import WorkerProcess, exit_in_words, pause_before_restart


def test_the_wait_before_a_restart_doubles_up_to_half_a_minute() -> None:
    pauses = [0.0]
    for _ in range(9):
        pauses.append(pause_before_restart(pauses[-1], lived=0.1))
    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(("lived", "pause"), [(9.9, 16), (10.1, 0.5)])
def test_a_worker_that_lived_long_is_replaced_soon(lived: float, pause: float) -> None:
    assert pause_before_restart(8, lived) == pause


@pytest.mark.parametrize(
    ("status", "told"),
    [(0, "ended with status 0"), (3, "ended with status 3"), (-signal.SIGKILL, "was killed by SIGKILL")],
)
def test_the_end_of_a_worker_is_described(status: int, told: str) -> None:
    assert exit_in_words(status) == told


class Process:
    pid = 1
    returncode = None
    killed = False

    def kill(self) -> None:
        self.killed = True


async def test_a_worker_without_heartbeats_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_slot, "BEAT", 1e9)  # the test itself runs the check
    worker, process = WorkerProcess(WorkerInfo(), Acceptor([])), Process()
    worker.process = process  # type: ignore[assignment]  # only this method is used
    channel, other = socket.socketpair()
    with channel, other:
        worker.receive(Ready(), channel)
        for _ in range(3):
            for _ in range(worker_slot.SILENT):
                worker.check_heartbeat()
            assert not process.killed
            worker.receive(Heartbeat(), channel)
        for _ in range(worker_slot.SILENT + 1):
            worker.check_heartbeat()
        assert process.killed
        worker.release_waiters()
