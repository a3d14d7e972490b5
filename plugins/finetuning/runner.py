"""Processes jobs: validates their files as soon as they are created, and runs a limited number of trainings."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Final

from sqlalchemy import select

from plugins.finetuning.job_leases import JobLeases
from plugins.finetuning.measures import clean
from plugins.finetuning.reading import PREFIX as READ
from plugins.finetuning.shared import Shared
from plugins.finetuning.store import OPEN, Job
from plugins.finetuning.tables import JOBS
from plugins.finetuning.trainer import GRACE
from plugins.finetuning.work import LeaseLost, Work, trained_in
from proxy.errors import Busy, ProxyError
from proxy.host import Host, interruptible_sleep, shielded
from proxy.wire.ids import new_id

log = logging.getLogger(__name__)
EVERY: Final = 5.0
"""Seconds between two checks for jobs that other processes abandoned."""
BEAT: Final = 2.0
"""Seconds between two heartbeats, which also notice that a job was cancelled by another process."""
READING: Final = 2
"""Jobs whose files one process validates at the same time."""
KEPT: Final = 86_400
"""Seconds for which the result of a training is kept if its model could not be created."""
PATIENCE: Final = 4 * GRACE
"""Maximum seconds to wait for trainers at shutdown."""
PREFIX: Final = "ftjob-"
ASIDE: Final = "going-"
"""Prefix of folders that are being deleted."""
VALIDATING: Final = "validating_files"


class Runner:
    def __init__(self, work: Work, job_leases: JobLeases, host: Host) -> None:
        self.work = work
        self.job_leases = job_leases
        self.host = host
        self.shared = Shared.of(host)
        self.wake = asyncio.Event()
        self.loop: asyncio.Task[None] | None = None

    def nudge(self) -> None:
        """Check for jobs now."""
        self.wake.set()

    async def run(self) -> None:
        while True:
            try:
                while (job := await self.claimed()) is not None:
                    self.begin(job)
            except Busy as error:
                log.warning("fine-tuning waits: %s", error)
            except Exception:
                log.exception("fine-tuning jobs could not be fetched")
            await interruptible_sleep(EVERY, self.wake)
            self.wake.clear()

    async def claimed(self) -> Job | None:
        """The next job.  None in a pipeline that a reload has replaced: new jobs belong to the newest one."""
        if self.shared.newest(self.host) is not self.host:
            return None
        job, doing = None, {*self.shared.reading, *self.shared.training}
        if len(self.shared.reading) < READING:
            job = await self.job_leases.claim(VALIDATING, self.work.trainers, doing)
        if job is None and len(self.shared.training) < self.job_leases.at_once:
            job = await self.job_leases.claim("queued", self.work.trainers, doing)
        return job

    def begin(self, job: Job) -> None:
        tasks = self.shared.reading if job.status == VALIDATING else self.shared.training
        tasks[job.id] = task = self.host.background.start(self.done(job), f"fine-tuning {job.id}")
        task.add_done_callback(lambda _: self.ended(job.id, tasks))

    def ended(self, id: str, tasks: dict[str, asyncio.Task[None]]) -> None:
        tasks.pop(id, None)
        self.shared.stopped.discard(id)
        self.wake.set()

    async def done(self, job: Job) -> None:
        beating = self.host.background.start(self.beat(job), f"holding {job.id}")
        try:
            await (self.work.validate if job.status == VALIDATING else self.work.train)(job)
        except LeaseLost:
            pass
        except asyncio.CancelledError:
            if job.id not in self.shared.stopped:
                with suppress(Busy):
                    await self.job_leases.release(job, VALIDATING if job.status == VALIDATING else "queued")
            elif job.status != VALIDATING:
                await shielded(self.work.unmade(job))
            raise
        except Busy as error:  # the failure cannot be stored: the lease expires, and a process takes the job over
            log.warning("%s is abandoned, and continues when its lease has ended: %s", job.id, error)
        except ProxyError as error:
            await self.failed(job, error)
        except Exception:
            log.exception("%s failed", job.id)
            await self.failed(job, ProxyError("The server failed to do it.", code="internal_error"))
        finally:
            beating.cancel()
            await self.clean([job.id])

    async def failed(self, job: Job, error: ProxyError) -> None:
        told = {"code": error.code or "internal_error", "error": clean(str(error), 4000), "param": error.param or ""}
        with suppress(Busy):
            await self.job_leases.end(job, "failed", f"The job has failed: {error}", "error", **told)

    async def beat(self, job: Job) -> None:
        """Send heartbeats, and stop the work if the job is no longer this process's."""
        while True:
            await asyncio.sleep(BEAT)
            with suppress(Busy):
                if not await self.job_leases.tell(job):
                    self.stop(job.id)

    def stop(self, id: str) -> None:
        """Stop a job if this process is working on it."""
        task = self.shared.reading.get(id) or self.shared.training.get(id)
        if task is not None and id not in self.shared.stopped:
            self.shared.stopped.add(id)
            task.cancel()

    def cancelled(self, job: Job) -> None:
        """Stop a cancelled job, and delete a model that an earlier attempt may have imported."""
        self.stop(job.id)
        if job.starts:
            self.host.background.start(self.work.unmade(job), f"deleting {job.tuned}")

    # --- cleaning up ---------------------------------------------------------------------------------

    async def clean(self, ids: Iterable[str]) -> None:
        """Delete the folders of these jobs, unless they are still needed."""
        for id in ids:
            folder, aside = self.work.folder / id, self.work.folder / new_id(ASIDE)
            with suppress(Busy):
                if await asyncio.to_thread(folder.exists):
                    await self.put_aside(id, folder, aside)
                    await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    async def put_aside(self, id: str, folder: Path, aside: Path) -> None:
        """Rename the folder unless it is needed.  Meanwhile the row is locked, so no process can take the job over and
        create a new folder, which would be deleted instead."""
        async with self.job_leases.database.writing() as connection:
            row = (await connection.execute(select(JOBS).where(JOBS.c.id == id).with_for_update())).first()
            if row is None or not await self.needed(Job(*row), folder):
                await asyncio.to_thread(renamed, folder, aside)

    async def needed(self, job: Job, folder: Path) -> bool:
        done = await asyncio.to_thread(trained_in, folder) is not None
        if job.status in OPEN:  # another process of this server may hold it
            return bool(job.holder) or done
        return job.status == "failed" and done and job.ended > self.job_leases.store.micros(-KEPT)

    async def tidy(self) -> None:
        """Clean up what earlier servers left in the folder."""
        names = await asyncio.to_thread(swept, self.work.folder)
        await self.clean(name for name in names if name not in self.shared.training)

    # --- starting and stopping -----------------------------------------------------------------------

    def open(self) -> None:
        self.shared.open.append(self.host)
        self.loop = self.host.background.start(self.run(), "looking for jobs of fine-tuning")

    async def close(self) -> None:
        """Trainings survive a reload; a shutdown stops them, and they begin again after the restart."""
        if self.loop is not None:
            self.loop.cancel()
        self.shared.open = [one for one in self.shared.open if one is not self.host]
        if not self.shared.open and (tasks := [*self.shared.reading.values(), *self.shared.training.values()]):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=PATIENCE)


def renamed(folder: Path, aside: Path) -> None:
    with suppress(OSError):  # another process may have been faster
        folder.rename(aside)


def swept(folder: Path) -> list[str]:
    """The names of jobs' folders; deletes folders marked for deletion, and copies of files older than a day."""
    for one in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(one, ignore_errors=True)
    for one in folder.glob(f"{READ}*"):
        with suppress(FileNotFoundError):  # another process may have finished with it just now
            if one.stat().st_mtime < time() - KEPT:
                shutil.rmtree(one, ignore_errors=True)
    return [one.name for one in folder.glob(f"{PREFIX}*")]
