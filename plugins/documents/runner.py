"""Does the jobs: some at once, each again while what fails may pass, and none twice."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from plugins.documents.ingest import Ingest, Overtaken, lasting
from plugins.documents.ledger import LEASE, Job, Ledger
from plugins.documents.tables import JOBS
from proxy.errors import Busy, ProxyError
from proxy.host import Host
from proxy.sql.database import DatabaseAway

log = logging.getLogger(__name__)
EVERY: Final = 5.0
"""Seconds after which it looks for jobs that other processes left."""
PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between tries, of which there is one more."""


class Runner:
    def __init__(self, ingest: Ingest, ledger: Ledger, host: Host, most: int) -> None:
        """most: jobs at once."""
        self.ingest = ingest
        self.ledger = ledger
        self.host = host
        self.most = most
        self.wake = asyncio.Event()
        self.running: dict[str, asyncio.Task[None]] = {}

    def nudge(self) -> None:
        """There is something to do."""
        self.wake.set()

    async def run(self) -> None:
        while True:
            try:
                while len(self.running) < self.most and (job := await self.ledger.claim()) is not None:
                    self.begin(job)
            except Busy as error:
                log.warning("documents wait: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self.wake.wait()
            self.wake.clear()

    def begin(self, job: Job) -> None:
        task = self.host.background.start(self.work(job), f"taking in {job.item}")
        self.running[job.id] = task
        task.add_done_callback(lambda _: self.ended(job.id))

    def ended(self, job: str) -> None:
        self.running.pop(job, None)
        self.ledger.tell()
        self.wake.set()

    async def work(self, job: Job) -> None:
        beating = self.host.background.start(self.beat(job, asyncio.current_task()), f"holding {job.id}")
        try:
            await self.tried(job)
        except (Overtaken, asyncio.CancelledError) as error:
            with suppress(Busy):
                await self.undo(job)
            if isinstance(error, asyncio.CancelledError):
                raise
        except Busy as error:  # nobody can write it down: the lease ends, and somebody takes it up again
            log.warning("a document was not taken in: %s", error)
        except Exception:
            log.exception("document %s could not be taken in", job.item)
            await self.ledger.fail(job, "The server failed to take it in.")
        finally:
            beating.cancel()

    async def tried(self, job: Job) -> None:
        for pause in (*PAUSES, None):
            try:
                return await self.once(job)
            except DatabaseAway:
                raise
            except ProxyError as error:
                if pause is None or lasting(error):
                    log.warning("document %s failed: %s", job.item, error)
                    await self.ingest.origins.note(job.item, error)
                    return await self.ledger.fail(job, str(error))
                log.warning("document %s waits %g s for another try: %s", job.item, pause, error)
                await asyncio.sleep(max(pause, min(error.wait or 0.0, PAUSES[-1])))

    async def once(self, job: Job) -> None:
        item = await self.ingest.store.item(job.item)
        collection = await self.ingest.collections.by_id(job.collection)
        if item is None or collection is None or item.newest != job.version:
            raise Overtaken
        await self.ingest.run(job, item, collection)

    async def beat(self, job: Job, task: asyncio.Task[None] | None) -> None:
        """Holds it, and stops its work when it is not this process's any more."""
        while True:
            await asyncio.sleep(LEASE / 3)
            with suppress(Busy):
                if not await self.ledger.progress(job) and task is not None:
                    task.cancel()

    async def undo(self, job: Job) -> None:
        """What was added of it goes if nobody wants it; else somebody else does it."""
        now = await self.ledger.first(JOBS.c.id == job.id)
        if now is None or now.status == "cancelled":
            await self.ingest.index.remove(job.collection, job.item, job.version, job.version + 1)
        else:
            await self.ledger.release(job)

    def stop(self, id: str) -> None:
        """One that was cancelled."""
        if (task := self.running.get(id)) is not None:
            task.cancel()

    async def aclose(self) -> None:
        while running := list(self.running.values()):
            for task in running:
                task.cancel()
            await asyncio.wait(running)
