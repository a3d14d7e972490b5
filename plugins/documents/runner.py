"""Runs jobs: several at once, with retries after temporary errors."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from plugins.documents.ingest import Ingest, LeaseLost, lasting
from plugins.documents.job_queue import LEASE, Job
from plugins.documents.moving import Mover
from plugins.documents.store import Item
from plugins.documents.tables import JOBS
from plugins.documents.vectorstores.origins import GONE
from proxy.errors import Busy, NotFound, ProxyError
from proxy.host import Host, interruptible_sleep, shielded
from proxy.sql.database import DatabaseAway
from proxy.stores.vectors import VectorsAway

log = logging.getLogger(__name__)
EVERY: Final = 5.0
"""Seconds between two polls for jobs, such as those of other processes."""
PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between attempts; there is one attempt more than pauses."""


class Runner:
    def __init__(self, ingest: Ingest, mover: Mover, host: Host, most: int) -> None:
        """most: documents indexed at once, in addition to one collection being moved."""
        self.ingest = ingest
        self.mover = mover
        self.job_queue = ingest.job_queue
        self.host = host
        self.most = most
        self.wake = asyncio.Event()
        self.running: dict[str, asyncio.Task[None]] = {}
        self.moving: set[str] = set()
        """The running jobs that move a collection; they do not count towards `most`, so documents need not wait."""
        self.said = ""
        """The reason for retries that was logged last."""

    def nudge(self) -> None:
        """Wake the loop, because there is a new job."""
        self.wake.set()

    async def run(self) -> None:
        while True:
            try:
                while (job := await self.claimed()) is not None:
                    self.begin(job)
            except Busy as error:
                log.warning("documents wait: %s", error)
            except Exception:  # must not end the loop
                log.exception("documents to be indexed could not be fetched")
            await interruptible_sleep(EVERY, self.wake)
            self.wake.clear()

    async def claimed(self) -> Job | None:
        room = len(self.running) - len(self.moving) < self.most
        return await self.job_queue.claim(room, not self.moving, but=self.running)

    def begin(self, job: Job) -> None:
        task = self.host.background.start(self.work(job), f"taking in {job.item or job.collection}")
        self.running[job.id] = task
        if not job.item:
            self.moving.add(job.id)
        task.add_done_callback(lambda _: self.ended(job.id))

    def ended(self, job: str) -> None:
        self.running.pop(job, None)
        self.moving.discard(job)
        self.job_queue.tell()
        self.wake.set()

    async def work(self, job: Job) -> None:
        beating = self.host.background.start(self.beat(job, asyncio.current_task()), f"holding {job.id}")
        try:
            while await self.tried(job):
                pass
        except (LeaseLost, asyncio.CancelledError) as error:
            with suppress(Busy):
                await shielded(self.undo(job))  # the heartbeat may cancel this task once more
            if isinstance(error, asyncio.CancelledError):
                raise
        except Busy as error:  # the failure cannot be stored; the lease expires, and the job is run again
            log.warning("a document could not be indexed: %s", error)
        except Exception:
            log.exception("%s could not be indexed", job.item or job.collection)
            with suppress(Busy):
                await self.failed(job, "The server failed to take it in.")
        finally:
            beating.cancel()

    async def tried(self, job: Job) -> bool:
        """Run a job or a step of it, with retries; gives whether there is more to do."""
        for pause in (*PAUSES, None):
            try:
                more = await self.once(job)
                self.said = ""
                return more
            except DatabaseAway:
                raise
            except ProxyError as error:
                if pause is None or lasting(error):
                    log.warning("%s failed: %s", job.item or job.collection, error.why)
                    await self.ingest.origins.note(job.item, error)
                    await self.failed(job, str(error))
                    return False
                self.say(job, error)
                await self.job_queue.wait(job, str(error))
                await asyncio.sleep(max(pause, min(error.wait or 0.0, PAUSES[-1])))
        return False

    def say(self, job: Job, error: ProxyError) -> None:
        """Log a retry, once per reason, however many documents are affected."""
        if error.why != self.said:
            self.said = error.why
            log.warning("%s will be tried again, as may others: %s", job.item or job.collection, error.why)

    async def once(self, job: Job) -> bool:
        collection = await self.ingest.collections.by_id(job.collection)
        if collection is not None and not job.item and collection.next_job == job.id:
            return await self.mover.step(job, collection)
        item = await self.ingest.store.item(job.item)
        if item is None or collection is None or item.newest != job.version:
            await self.job_queue.cancel(job)
            raise LeaseLost
        try:
            await self.ingest.run(job, item, collection)
        except NotFound as error:
            if error.code != GONE:
                raise
            await self.ingest.store.remove(item)  # the file was deleted, so its document goes, too
            raise LeaseLost from None
        return False

    async def beat(self, job: Job, task: asyncio.Task[None] | None) -> None:
        """Renew the lease of a job, and cancel its task if the job is no longer this process's."""
        while True:
            await asyncio.sleep(LEASE / 3)
            with suppress(Busy):
                if not await self.job_queue.progress(job) and task is not None:
                    task.cancel()

    async def undo(self, job: Job) -> None:
        """Clean up an interrupted job: remove its rows if it was cancelled, else put it back into the queue."""
        now = await self.job_queue.first(JOBS.c.id == job.id)
        if now is None or now.status == "cancelled":
            await self.cleared(job)
        else:
            await self.job_queue.release(job)

    async def failed(self, job: Job, reason: str) -> None:
        if await self.job_queue.progress(job):  # else another process has the job and its rows in the index
            with suppress(VectorsAway):  # leftover rows are removed at the next start
                await self.cleared(job)
            await self.job_queue.fail(job, reason)

    async def cleared(self, job: Job) -> None:
        """Remove a document version's rows from the index, since they would displace others in search results."""
        if job.item and (collection := await self.ingest.collections.by_id(job.collection)) is not None:
            await self.ingest.index.remove(collection.place, job.item, job.version, job.version + 1)

    async def remove(self, item: Item) -> None:
        """Remove a document and stop its job.

        If the index is unavailable, rows left there are ignored by searches and removed at the next start.
        """
        job = await self.job_queue.of_item(item.id)
        await self.ingest.store.remove(item)
        if job is not None:
            self.stop(job.id)
        if (collection := await self.ingest.collections.by_id(item.collection)) is not None:
            with suppress(VectorsAway):
                await self.ingest.index.remove(collection.place, item.id)
            self.ingest.upkeep.note(collection.place, 0)

    def stop(self, id: str) -> None:
        """Stop a cancelled job, if this process is running it."""
        if (task := self.running.get(id)) is not None:
            task.cancel()

    async def aclose(self) -> None:
        while running := list(self.running.values()):
            for task in running:
                task.cancel()
            await asyncio.wait(running)
