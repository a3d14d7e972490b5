"""Tasks that outlive the request that began them: owned, limited in number, and ended with the server."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from proxy.errors import Busy, ProxyError

log = logging.getLogger(__name__)
LONGEST: Final = 60.0
"""Seconds that a shutdown waits for cancelled tasks to end."""
CALM: Final = 30.0
"""Maximum seconds by which periodic tasks that are not urgent are delayed when the server starts."""
Result = TypeVar("Result")
COMPUTING: Final = ThreadPoolExecutor(1, thread_name_prefix="long computations")
"""One thread: it and the event loop take turns of 5 ms, and with more the event loop would wait for each of them."""


class Background:
    """Owns detached tasks.  Their failures are logged and do not affect other tasks."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.tasks: set[asyncio.Task[Any]] = set()
        self.failing: dict[str, str] = {}

    def start(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """Raises Busy when `most` tasks are running already."""
        self._room(work, name)
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def start_eagerly(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """As `start`, two turns of the event loop cheaper: for work that never raises and ends with `discard_current`.

        With Python 3.12 or later, the work has run up to its first wait when this returns.
        """
        if sys.version_info < (3, 12):
            return self.start(work, name)
        self._room(work, name)
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, eager_start=True)
        if not task.done():
            self.tasks.add(task)
        return task

    def discard_current(self) -> None:
        """To be called by the current task at its end, if `start_eagerly` started it."""
        self.tasks.discard(cast("asyncio.Task[Any]", asyncio.current_task()))

    def _room(self, work: Coroutine[Any, Any, Result], name: str) -> None:
        if len(self.tasks) >= self.most:
            work.close()
            raise Busy(f"{self.most} background tasks are running; {name} cannot start")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if self.failing:
                self.failing.pop(task.get_name(), None)
        elif isinstance(error, ProxyError):
            if self.failing.get(task.get_name()) != str(error):  # an outage is logged once, not at every try
                log.warning("%s: %s", task.get_name(), error)
            self.failing[task.get_name()] = str(error)
            while len(self.failing) > self.most:
                self.failing.pop(next(iter(self.failing)))
        else:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def aclose(self, patience: float = LONGEST) -> None:
        """Cancel all tasks and wait for their end, `patience` seconds at most; those that then still run are logged."""
        try:
            async with asyncio.timeout(patience):
                while running := list(self.tasks):
                    for task in running:
                        task.cancel()
                    await asyncio.wait(running)
        except TimeoutError:
            log.error(
                "background tasks did not end in time and are abandoned: %s",
                ", ".join(sorted(task.get_name() for task in self.tasks)),
            )


class PeriodicTasks:
    """The periodic tasks of one part of the server."""

    def __init__(self, background: Background) -> None:
        self.background = background
        self.over = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def every(self, seconds: float, work: Callable[[], Awaitable[object]], name: str, calm: bool = False) -> None:
        """Do `work` at once and then every `seconds` seconds.  calm: it is not urgent, so its first run is delayed."""
        self.tasks.append(self.background.start(periodically(work, seconds, self.over, calm), name))

    async def end(self, patience: float = 5.0) -> None:
        """Stop all tasks; a run in progress has `patience` seconds to finish and is then cancelled.

        It is not cancelled at once, because a statement of a database would continue in its thread.
        """
        self.over.set()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=patience)
        for task in self.tasks:
            task.cancel()


async def periodically(
    work: Callable[[], Awaitable[object]], seconds: float, over: asyncio.Event, calm: bool = False
) -> None:
    """Do `work` at once and then every `seconds` seconds until `over` is set, which does not interrupt a run.

    calm: it is not urgent, so the first run is delayed.
    Busy is ignored, because what raises it logs the outage; any other error is logged and ends only that run.
    """
    if calm:
        await interruptible_sleep(min(CALM, seconds), over)
    while not over.is_set():
        try:
            await work()
        except Busy:
            pass
        except Exception:
            log.exception("a periodic task failed")
        await interruptible_sleep(seconds, over)


async def interruptible_sleep(seconds: float, over: asyncio.Event) -> bool:
    """Sleep, but wake early if `over` is set.  Gives whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
    return over.is_set()


async def in_thread(work: Callable[[], Result]) -> Result:
    """The result of a long computation; the event loop keeps running meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(COMPUTING, work)


async def shielded(work: Coroutine[Any, Any, object]) -> None:
    """Run `work` to its end, even if the waiting task is cancelled meanwhile; the cancellation is raised afterwards."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def ends_first(wanted: Awaitable[object], other: Awaitable[object], patience: float) -> bool:
    """Wait until one of the two has ended, `patience` seconds at most.  Gives whether `wanted` has."""
    waits = [asyncio.ensure_future(wanted), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        return waits[0].done()
    finally:
        for one in waits:
            one.cancel()
