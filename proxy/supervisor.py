"""Runs several processes as one server; owns the port, the signals and the last good configuration."""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence

from proxy.acceptor import Acceptor, bound
from proxy.background import Background, ends_first
from proxy.config import Config
from proxy.config_file import Overrides, Read, Watch, for_reload
from proxy.errors import ConfigError
from proxy.host import WorkerInfo
from proxy.identity import check_exposure
from proxy.server import BACKLOG, GRACE, STOPPING, Hosts, checked_config, reloading, url_of
from proxy.worker_messages import Start, StopNow
from proxy.worker_slot import MARGIN, WorkerSlot
from proxy.yamlfile import Source

log = logging.getLogger(__name__)


class Supervisor:
    """Starts the workers, passes reloads and signals on to them, and stops them in order."""

    def __init__(
        self, read: Read, found: tuple[Config, Source], told: Overrides, acceptor: Acceptor, url: str, folder: str
    ) -> None:
        """read: for reloads.  found: the configuration at the start.  folder: for files that the workers share."""
        self.config, source = found
        self.name, self.text = source.name, source.text
        self.first = self.config
        self.read = read
        self.told = told
        self.acceptor = acceptor
        self.url = url
        self.failed = False
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()
        count = self.config.listen.workers
        server = WorkerInfo().server
        self.slots = [self.slot(WorkerInfo(server, index, count, folder)) for index in range(count)]

    def slot(self, worker_info: WorkerInfo) -> WorkerSlot:
        def start() -> Start:
            return Start(
                name=self.name,
                text=self.text,
                listen=self.first.listen,
                log=self.first.log,
                demo=self.told.demo,
                insecure=self.told.insecure,
                worker_info=worker_info,
                url=self.url,
            )

        return WorkerSlot(worker_info, self.acceptor, start)

    async def hosts(self) -> Hosts:
        """The state of the hosts as a worker found them at its start."""
        asked = [slot.worker.upstreams for slot in self.slots if slot.worker.ready]
        if asked:
            await asyncio.wait(asked)
        told = [one.result() for one in asked if not one.cancelled()]
        unasked = {name: dict.fromkeys(one.urls, "not asked yet") for name, one in self.config.upstreams.items()}
        return told[0] if told else unasked

    def signalled(self) -> None:
        """The first signal stops the server; the second one also cuts off running calls."""
        if self.stop.is_set():
            self.hurry.set()
            for slot in self.slots:
                slot.worker.send(StopNow())
        self.stop.set()

    async def renew(self) -> None:
        """Give the file's present contents to all workers.  Raises ConfigError, with nothing changed, if one of them
        cannot use it."""
        config, source = await checked_config(self.read)
        before, self.text = self.text, source.text
        if problems := await self.hand_out(source.text):
            self.text = before
            await self.hand_out(before)
            raise ConfigError(problems)
        self.config = config

    async def hand_out(self, text: str) -> list[str]:
        """Give a configuration to all workers; gives the problems, each with its worker."""
        answers = await asyncio.gather(*(slot.worker.reload(text) for slot in self.slots))
        return [
            f"worker {slot.worker_info.index}: {problem}"
            for slot, problems in zip(self.slots, answers, strict=True)
            for problem in problems
        ]

    async def leave(self) -> None:
        """Let the workers report that they are not ready, then close the port.  Running calls may go on."""
        processes, drain = [slot.worker for slot in self.slots], self.config.listen.drain
        for slot in self.slots:
            slot.stop()
        await ends_first(every([process.counted for process in processes]), self.hurry.wait(), GRACE)
        if calls := sum(process.calls for process in processes):
            log.info(STOPPING, calls)
            await ends_first(every([process.idle for process in processes]), self.hurry.wait(), min(GRACE, drain))
        self.acceptor.close()

    async def end(self, keeping: list[asyncio.Task[None]]) -> None:
        """Wait until all workers have exited; those that take too long are killed."""
        patience = self.config.listen.drain + MARGIN
        if not await ends_first(asyncio.wait(keeping), self.hurry.wait(), patience) and self.hurry.is_set():
            await asyncio.wait(keeping, timeout=MARGIN)
        for slot in self.slots:
            if slot.worker.kill():
                log.warning("worker %s did not end and was killed", slot.worker_info.index)
        await asyncio.wait(keeping)
        self.acceptor.abandon()

    async def begin(self, tell: Callable[[Supervisor], Awaitable[None]]) -> None:
        """Call `tell` once every first worker is ready or has failed; if all have failed, stop the server."""
        processes = [slot.worker for slot in self.slots]
        await every([process.settled for process in processes])
        if any(process.ready for process in processes):
            await tell(self)
        elif not self.stop.is_set():
            log.error("no worker could be started")
            self.failed = True
            self.stop.set()

    async def run(self, watch: Watch, tell: Callable[[Supervisor], Awaitable[None]]) -> None:
        """Run until the server is told to stop, or no worker can be started."""
        workers, own_tasks = Background(), Background()
        keeping = [workers.start(slot.run(), f"keeping worker {slot.worker_info.index}") for slot in self.slots]
        own_tasks.start(reloading(self.renew, watch), "reloading")
        own_tasks.start(watch.looking(), "watching the configuration")
        own_tasks.start(self.begin(tell), "starting")
        await self.stop.wait()
        await own_tasks.aclose()
        await self.leave()
        await self.end(keeping)


async def every(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def run(read: Read, watch: Watch, told: Overrides, tell: Callable[[Supervisor], Awaitable[None]]) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP or a changed file reloads.  Gives the exit status.

    Raises ConfigError, or OSError if the port is taken.
    """
    config, source = await checked_config(read)
    check_exposure(config, source, told.insecure)
    listening = await bound(config.listen.host, config.listen.port, BACKLOG)
    url = url_of(config.listen.host, listening[0].getsockname()[1])
    again = for_reload(read, config, told.insecure)
    with tempfile.TemporaryDirectory(prefix="gemmapy-", ignore_cleanup_errors=True) as folder:
        supervisor = Supervisor(again, (config, source), told, Acceptor(listening), url, folder)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.signalled)
        loop.add_signal_handler(signal.SIGHUP, watch.hangup)
        await supervisor.run(watch, tell)
        return int(supervisor.failed)
