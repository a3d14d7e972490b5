"""Periodic chores and background tasks."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress

import pytest

from proxy.background import Background, PeriodicTasks, periodically, shielded
from proxy.commands import shared
from proxy.errors import Busy


async def test_a_chore_survives_exceptions_and_logs_only_unexpected_ones(caplog: pytest.LogCaptureFixture) -> None:
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
        await periodically(work, 0.001, over)
    assert times == 3
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_chore_that_is_not_urgent_does_not_run_at_startup() -> None:
    over, times = asyncio.Event(), 0

    async def work() -> None:
        nonlocal times
        times += 1

    task = asyncio.ensure_future(periodically(work, 1000, over, calm=True))
    await asyncio.sleep(0.01)
    over.set()
    await task
    assert times == 0


async def test_work_runs_up_to_its_first_wait_at_once_and_reports_its_end() -> None:
    background, may_end, done = Background(most=1), asyncio.Event(), list[str]()

    async def work() -> None:
        try:
            done.append("begun")
            await may_end.wait()
        finally:
            background.discard_current()

    task = background.start_eagerly(work(), "work")
    assert done == (["begun"] if sys.version_info >= (3, 12) else [])
    assert background.tasks == {task}
    with pytest.raises(Busy):
        background.start_eagerly(work(), "more")
    may_end.set()
    await task
    assert not background.tasks
    await background.start_eagerly(work(), "what need not wait")
    assert not background.tasks
    may_end.clear()
    background.start_eagerly(work(), "what is cut off")
    await background.aclose()


@pytest.mark.parametrize("patience", [10, 0])
async def test_a_running_chore_is_finished_unless_that_takes_too_long(patience: float) -> None:
    background, begun, done = Background(), asyncio.Event(), False
    tasks = PeriodicTasks(background)

    async def work() -> None:
        nonlocal done
        begun.set()
        await tasks.over.wait()
        await asyncio.sleep(0.01)
        done = True

    async with asyncio.timeout(10):
        tasks.every(1000, work, "a task")
        await begun.wait()
        await tasks.end(patience)
        await asyncio.wait(tasks.tasks)
    assert done is bool(patience) and not background.tasks


async def test_shielded_work_is_completed_however_often_its_task_is_cancelled() -> None:
    ended, over = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await over.wait()
        ended.set()

    task = asyncio.ensure_future(shielded(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    await shielded(work())


async def stubborn(over: asyncio.Event) -> None:
    while not over.is_set():
        with suppress(asyncio.CancelledError):
            await over.wait()


async def test_closing_waits_for_tasks_and_logs_those_that_do_not_end(caplog: pytest.LogCaptureFixture) -> None:
    background, over, cleared = Background(), asyncio.Event(), False

    async def clearing() -> None:
        nonlocal cleared
        try:
            await over.wait()
        finally:
            await asyncio.sleep(0)
            cleared = True

    task = background.start(stubborn(over), "a stubborn one")
    background.start(clearing(), "one that clears up")
    await asyncio.sleep(0)
    await background.aclose(patience=0.1)
    assert cleared
    assert [record.getMessage() for record in caplog.records] == [
        "background tasks did not end in time and are abandoned: a stubborn one"
    ]
    over.set()
    await task
    await background.aclose()


def test_a_command_ends_even_if_a_task_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.05)
    left: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, asyncio.Task[None]]] = []

    async def work() -> str:
        over = asyncio.Event()
        left.append((asyncio.get_running_loop(), over, asyncio.ensure_future(stubborn(over))))
        await asyncio.sleep(0)
        return "done"

    assert shared.run(work()) == "done"
    ((loop, over, task),) = left
    assert not task.done()
    over.set()
    loop.run_until_complete(task)
    loop.close()
