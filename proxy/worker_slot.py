"""A worker's slot: the process that fills it now, and its restarts."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from proxy.acceptor import Acceptor
from proxy.background import interruptible_sleep
from proxy.host import WorkerInfo
from proxy.worker_messages import (
    BEAT,
    LONGEST,
    REPORTS,
    Failed,
    HostStates,
    Order,
    Ready,
    Reload,
    Reloaded,
    Report,
    RunningCalls,
    Start,
    Stop,
    encode,
    messages_of,
)

log = logging.getLogger(__name__)
FIRST: Final = 0.5
"""Seconds before the first restart; doubled for each further one."""
MOST: Final = 30.0
"""Maximum seconds before a restart."""
LONG: Final = 10.0
"""Seconds after which a worker counts as healthy: its next restart is a first one again."""
MARGIN: Final = 5.0
"""Seconds that a process may take to exit when it has nothing left to do."""

RELOADED: Final = 60.0
"""Seconds that a worker may take to build a configuration."""
SILENT: Final = 6
"""Heartbeats in a row that a ready worker may miss before it counts as hanging."""


def pause_before_restart(last: float, lived: float) -> float:
    """Seconds.  last: the pause before the worker that has now ended, 0 if there was none.  lived: its seconds."""
    return FIRST if not last or lived > LONG else min(2 * last, MOST)


def exit_in_words(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def worker_command() -> list[str]:
    """The command for a worker.  Unless this process itself was imported from the working directory, `-P` keeps the
    worker from importing another folder `proxy` there."""
    here = sys.path[:1] in ([""], [os.getcwd()])
    return [sys.executable, *([] if here else ["-P"]), "-m", "proxy", "worker"]


class WorkerProcess:
    """One worker process: its last messages, and how to send it orders."""

    def __init__(self, worker_info: WorkerInfo, acceptor: Acceptor) -> None:
        self.worker_info = worker_info
        self.acceptor = acceptor
        self.process: asyncio.subprocess.Process | None = None
        self.control: asyncio.StreamWriter | None = None
        self.problems: tuple[str, ...] = ()
        self.upstreams: asyncio.Future[dict[str, dict[str, str]]] = asyncio.get_running_loop().create_future()
        self.reloaded: asyncio.Future[tuple[str, ...]] | None = None
        self.ready = self.stopping = False
        self.calls = self.silent = 0
        self.check: asyncio.TimerHandle | None = None
        self.settled, self.counted, self.idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        """Set when it is ready or has failed; has reported its number of calls; has no calls left."""

    async def run(self, start: Callable[[], Start]) -> str:
        """Run the process to its end; gives how it ended.  Raises OSError if it cannot be started."""
        (ours, theirs), (channel, end_of_channel) = socket.socketpair(), socket.socketpair()
        channel.setblocking(False)
        try:
            with theirs, end_of_channel:
                await self.spawn(theirs.fileno(), end_of_channel.fileno())
            reports, self.control = await asyncio.open_unix_connection(sock=ours, limit=LONGEST)
            self.send(start())
            if self.stopping:
                self.send(Stop())
            async for report in messages_of(reports, REPORTS):
                self.receive(report, channel)
            return "; ".join([exit_in_words(await self.status()), *self.problems])
        finally:
            self.kill()
            if self.control is None:
                ours.close()
            if not self.ready:  # else the acceptor owns it
                channel.close()
            self.release_waiters()

    async def spawn(self, *numbers: int) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *worker_command(),
            *map(str, numbers),
            pass_fds=numbers,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C must reach only the supervisor, also while this one starts
        )

    def send(self, order: Order) -> None:
        if self.control is not None:
            self.control.write(encode(order))

    def check_heartbeat(self) -> None:
        """Kill a worker that hangs.  This counts looks, not seconds, because the supervisor may have been suspended."""
        self.silent += 1
        if self.silent > SILENT:
            log.error("worker %s has not responded for %g seconds and is killed", self.worker_info.index, SILENT * BEAT)
            self.kill()
        elif not self.stopping:
            self.schedule_check()

    def schedule_check(self) -> None:
        self.check = asyncio.get_running_loop().call_later(BEAT, self.check_heartbeat)

    def receive(self, report: Report, channel: socket.socket) -> None:
        self.silent = 0
        match report:
            case Ready():
                log.info("worker %s is ready (process %s)", self.worker_info.index, self.process and self.process.pid)
                self.ready = True
                self.settled.set()
                self.acceptor.join(channel)
                self.schedule_check()
            case HostStates(upstreams=upstreams) if not self.upstreams.done():
                self.upstreams.set_result(upstreams)
            case Failed(problems=problems):
                self.problems = problems
            case Reloaded(problems=problems) if self.reloaded is not None and not self.reloaded.done():
                self.reloaded.set_result(problems)
            case RunningCalls(count=count):
                self.calls = count
                self.counted.set()
                if not count:
                    self.idle.set()

    def stop(self) -> None:
        self.stopping = True
        self.send(Stop())

    async def reload(self, text: str) -> tuple[str, ...]:
        """The problems that this worker has with the text; none if it has ended, as its successor starts with it."""
        if self.control is None:
            return ()
        self.reloaded = asyncio.get_running_loop().create_future()
        self.send(Reload(text=text))
        try:
            async with asyncio.timeout(RELOADED):
                return await self.reloaded
        except TimeoutError:  # its successor starts with the text that is then valid, the new or the old one
            log.error(
                "worker %s did not load the configuration within %g seconds and is killed",
                self.worker_info.index,
                RELOADED,
            )
            self.kill()
            return ()

    async def status(self) -> int:
        """The exit status, after the worker has closed its connection; it is killed if it does not exit soon."""
        if self.process is None:
            return 1
        with suppress(TimeoutError):
            async with asyncio.timeout(MARGIN):
                return await self.process.wait()
        self.kill()
        return await self.process.wait()

    def release_waiters(self) -> None:
        """Release everything that waits for a message of this process."""
        self.calls = 0
        for event in (self.settled, self.counted, self.idle):
            event.set()
        self.upstreams.cancel()
        if self.check is not None:
            self.check.cancel()
        if self.reloaded is not None and not self.reloaded.done():
            self.reloaded.set_result(())
        if self.control is not None:
            self.control.close()
            self.control = None

    def kill(self) -> bool:
        """Kill the process; gives whether it was running."""
        if self.process is None or self.process.returncode is not None:
            return False
        with suppress(ProcessLookupError):
            self.process.kill()
        return True


class WorkerSlot:
    """The slot of one worker: starts its process, and another one after a pause whenever it ends."""

    def __init__(self, worker_info: WorkerInfo, acceptor: Acceptor, start: Callable[[], Start]) -> None:
        """start: gives the current first order for a worker."""
        self.worker_info = worker_info
        self.acceptor = acceptor
        self.start = start
        self.worker = WorkerProcess(worker_info, acceptor)
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Run one worker after another, until `stop` is called."""
        loop, pause = asyncio.get_running_loop(), 0.0
        while True:
            began = loop.time()
            how = await self.run_once()
            if self.stopping.is_set():
                return
            pause = pause_before_restart(pause, loop.time() - began)
            log.error("worker %s %s; another one starts in %g s", self.worker_info.index, how, pause)
            if await interruptible_sleep(pause, self.stopping):
                return
            self.worker = WorkerProcess(self.worker_info, self.acceptor)

    async def run_once(self) -> str:
        """Run one process to its end; gives how it ended."""
        try:
            return await self.worker.run(self.start)
        except OSError as error:
            return f"cannot be started: {error.strerror}"

    def stop(self) -> None:
        self.stopping.set()
        self.worker.stop()
