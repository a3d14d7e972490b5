"""The fine-tuning jobs of one caller: exported, or deleted together with their models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from plugins.finetuning import shapes
from plugins.finetuning.events import Event, Events
from plugins.finetuning.forms import Wanted
from plugins.finetuning.runner import Runner
from plugins.finetuning.store import OPEN, Job, Store
from proxy.errors import BadCall, Busy, NotFound, ProxyError
from proxy.host import Host
from proxy.types import JSON

CHUNK: Final = 50


@dataclass(frozen=True, slots=True)
class CallerJobs:
    store: Store
    events: Events
    runner: Runner
    host: Host
    name: str = "fine_tuning"

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        """All jobs with their events and checkpoints, newest first."""
        last, more = None, True
        while more:
            jobs, more = await self.store.beyond(caller, Wanted(None, CHUNK, {}), last)
            for job in jobs:
                checkpoints, _ = await self.events.checkpoints(job, None, 100)
                yield {
                    **shapes.job(job, self.store.micros()),
                    "events": [shapes.event(one) async for one in self.happened(job)],
                    "checkpoints": [shapes.checkpoint(one) for one in checkpoints],
                }
            last = jobs[-1] if jobs else None

    async def happened(self, job: Job) -> AsyncIterator[Event]:
        after, more = None, True
        while more:
            events, more = await self.events.page(job, after, 100)
            for one in events:
                yield one
            after = events[-1].id if events else None

    async def forget(self, caller: str) -> int:
        """Delete all jobs of a caller, and stop the running ones; returns how many there were."""
        whole = 0
        while jobs := await self.store.owned(caller, CHUNK):
            whole += await self.store.remove(caller, [job.id for job in jobs if await self.over(caller, job)])
        return whole

    async def over(self, caller: str, job: Job) -> bool:
        """Stop a job, and delete its model.  False if it has ended meanwhile: then it may have a model now."""
        if job.status in OPEN:
            try:
                job = await self.runner.job_leases.cancel(caller, job.id)
            except BadCall:
                return False
            except NotFound:
                pass
            self.runner.stop(job.id)
        if job.starts and not job.gone:  # the model of a failed job may have been imported, too
            await self.unmade(job.tuned, job.model)
        return True

    async def unmade(self, name: str, base: str) -> None:
        """Delete a model, which was trained on the owner's data.  Raises Busy if a host is unavailable."""
        try:
            await self.host.imports.remove(name, base)
        except (NotFound, BadCall):  # no upstream has the model, or none that can delete models
            pass
        except ProxyError as error:
            raise Busy(f"The model '{name}' cannot be deleted yet: {error}", code="upstream_away", wait=5.0) from error
