"""Trains models on callers' files with a program that the operator configures, and imports the results into Ollama."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt

from plugins.finetuning.api import Api
from plugins.finetuning.caller_data import CallerJobs
from plugins.finetuning.events import Events
from plugins.finetuning.job_leases import JobLeases
from plugins.finetuning.reading import Datasets
from plugins.finetuning.runner import Runner
from plugins.finetuning.store import Store
from plugins.finetuning.tables import FEATURE
from plugins.finetuning.trainer import Trainer
from plugins.finetuning.work import Work
from proxy.config import Strict
from proxy.host import Host, PeriodicTasks
from proxy.types import Route

MIB: Final = 1024 * 1024
EVERY: Final = 600.0
"""Seconds between two cleanups of job folders."""
Name = Annotated[str, Field(min_length=1, max_length=64)]


class FineTuning:
    """OpenAI's fine-tuning jobs; it goes into no chain, and needs the plugin `files`."""

    tables = FEATURE

    class Settings(Strict):
        trainers: dict[Name, Trainer] = Field(default_factory=dict)
        """The programs that train, by names of your choice; the first one with a matching pattern trains a model."""
        who: Literal["admin", "user"] = "admin"
        """Who may start jobs, which occupy a GPU."""
        folder: str = "data/finetuning"
        """Where each job has a private folder while it runs."""
        at_once: PositiveInt = 1
        """Concurrent trainings of this server, all of its processes together."""
        max_jobs: PositiveInt = 10
        """Unfinished jobs of one caller."""
        min_examples: PositiveInt = 10
        """Examples that a training file must have."""
        max_file_bytes: PositiveInt = 512 * MIB
        """Bytes of a dataset."""
        max_folder_bytes: PositiveInt = 100 * 1024 * MIB
        """Bytes of a job's folder, including checkpoints; beyond that its training is ended."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        folder = Path(settings.folder).absolute()
        store = Store(host.database, host.clock, settings.max_jobs)
        events = Events(store)
        job_leases = JobLeases(store, events, host.services.worker_info.server, settings.at_once)
        datasets = Datasets(host.files, folder, settings.min_examples, settings.max_file_bytes)
        work = Work(host, job_leases, events, datasets, settings.trainers, folder, settings.max_folder_bytes)
        self.runner = Runner(work, job_leases, host)
        self.api = Api(store, events, datasets, self.runner, settings.trainers, host, settings.who)
        self.periodic = PeriodicTasks(host.background)
        host.register_caller_data(CallerJobs(store, events, self.runner, host))

    def routes(self) -> Iterable[Route]:
        yield from self.api.routes()

    async def __aenter__(self) -> Self:
        self.runner.open()
        self.periodic.every(EVERY, self.runner.tidy, "tidying after fine-tuning")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.close()
        await self.periodic.end()
