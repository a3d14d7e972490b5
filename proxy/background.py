"""Tasks that outlive the request that began them: owned, bounded, and ended with the server."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from proxy.errors import Busy, ProxyError

log = logging.getLogger(__name__)
LONGEST: Final = 60.0
"""Seconds that the end of a server waits for tasks which it has told to end."""
CALM: Final = 30.0
"""Seconds after which a server is no longer busy with its start."""
Result = TypeVar("Result")


class Background:
    """Owns detached tasks.  A failure that nobody awaits is logged, and is no other task's business."""

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

    def begin(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """The same for work that never fails and says when it is `over`; it spares the loop two turns a task.

        With Python 3.12 or later it has gone to where it has to wait before this returns.
        """
        if sys.version_info < (3, 12):
            return self.start(work, name)
        self._room(work, name)
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, eager_start=True)
        if not task.done():
            self.tasks.add(task)
        return task

    def over(self) -> None:
        """The current task has come to its end."""
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
            if self.failing.get(task.get_name()) != str(error):  # an outage is told once, not at every try
                log.warning("%s: %s", task.get_name(), error)
            self.failing[task.get_name()] = str(error)
            while len(self.failing) > self.most:
                self.failing.pop(next(iter(self.failing)))
        else:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def aclose(self, patience: float = LONGEST) -> None:
        """Cancel what still runs and wait for its end: so many seconds at most, after which what goes on is told."""
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


class Chores:
    """What one part of a server does now and then, from its start to its end."""

    def __init__(self, background: Background) -> None:
        self.background = background
        self.over = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def every(self, seconds: float, work: Callable[[], Awaitable[object]], name: str, calm: bool = False) -> None:
        """calm: it is not urgent, and does not begin while a server starts."""
        self.tasks.append(self.background.start(now_and_then(work, seconds, self.over, calm), name))

    async def end(self, patience: float = 5.0) -> None:
        """What is being done comes to its end, within so many seconds.

        It is not cancelled before: what a database's connection was doing then would go on in its thread.
        """
        self.over.set()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=patience)
        for task in self.tasks:
            task.cancel()


async def now_and_then(
    work: Callable[[], Awaitable[object]], seconds: float, over: asyncio.Event, calm: bool = False
) -> None:
    """Do this at once and every so many seconds, until it is over and never stopping in the middle.

    calm: it is not urgent, and does not begin while a server starts.
    That something is away is told by whoever asks it; any other fault is logged, and ends that one time only.
    """
    if calm:
        await rest(min(CALM, seconds), over)
    while not over.is_set():
        try:
            await work()
        except Busy:
            pass
        except Exception:
            log.exception("a periodic task failed")
        await rest(seconds, over)


async def rest(seconds: float, over: asyncio.Event) -> bool:
    """So long, unless it is over before.  Whether it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
    return over.is_set()


async def surely(work: Coroutine[Any, Any, object]) -> None:
    """To its end, however often whoever waits for it is cancelled meanwhile."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def either(wanted: Awaitable[object], other: Awaitable[object], patience: float) -> bool:
    """Whether the first of two that are waited for has ended, when one has or after so many seconds."""
    waits = [asyncio.ensure_future(wanted), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        return waits[0].done()
    finally:
        for one in waits:
            one.cancel()
