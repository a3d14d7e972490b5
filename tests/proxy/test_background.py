"""What is done now and then, beside the calls."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.background import now_and_then, surely
from proxy.errors import Busy


async def test_a_fault_ends_one_time_only_and_what_is_away_is_told_by_others(caplog: pytest.LogCaptureFixture) -> None:
    over, times = asyncio.Event(), 0

    async def work() -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise Busy("away")
        if times == 2:
            raise ValueError("broken")
        over.set()

    caplog.set_level(logging.WARNING)
    async with asyncio.timeout(10):
        await now_and_then(work, 0.001, over)
    assert times == 3
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_what_is_not_urgent_does_not_begin_while_a_server_starts() -> None:
    over, times = asyncio.Event(), 0

    async def work() -> None:
        nonlocal times
        times += 1

    task = asyncio.ensure_future(now_and_then(work, 1000, over, calm=True))
    await asyncio.sleep(0.01)
    over.set()
    await task
    assert times == 0


async def test_what_has_begun_is_finished() -> None:
    over, begun, done = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal done
        begun.set()
        await over.wait()
        done = True

    async with asyncio.timeout(10):
        task = asyncio.ensure_future(now_and_then(work, 1000, over))
        await begun.wait()
        over.set()
        await task
    assert done


async def test_what_must_end_well_does_however_often_its_task_is_cancelled() -> None:
    ended, over = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await over.wait()
        ended.set()

    task = asyncio.ensure_future(surely(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    await surely(work())
