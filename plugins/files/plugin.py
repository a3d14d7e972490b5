"""Stores callers' files, and lets other features read them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Final, Self

from pydantic import PositiveInt

from plugins.files import retention
from plugins.files.api import Api
from plugins.files.store import Bounds, Store
from plugins.files.tables import FEATURE
from proxy.config import Strict
from proxy.errors import ConfigError
from proxy.host import Host, PeriodicTasks
from proxy.types import Route

MIB: Final = 1024 * 1024
PATIENCE: Final = 5.0
"""Seconds that writes in progress may take at shutdown."""


class Files:
    """Stores files in the database and serves OpenAI's endpoints for them; it goes into no chain."""

    tables = FEATURE

    class Settings(Strict):
        max_file_bytes: PositiveInt = 512 * MIB
        """Bytes of one file."""
        max_bytes: PositiveInt = 10 * 1024 * MIB
        """Bytes of all files of one caller."""
        max_files: PositiveInt = 10_000
        """Files of one caller."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        bounds = Bounds(settings.max_file_bytes, settings.max_bytes, settings.max_files)
        self.store = Store(host.database, host.clock, bounds, host.files)
        self.api = Api(self.store, host)
        self.periodic = PeriodicTasks(host.background)
        if host.files.store is not None:
            raise ConfigError(["files are kept by one plugin only"])
        host.files.store = self.store
        host.register_caller_data(retention.CallerFiles(self.store))

    def routes(self) -> Iterable[Route]:
        yield from self.api.routes()

    async def __aenter__(self) -> Self:
        self.periodic.every(retention.EVERY, partial(retention.tidy, self.store), "deleting old files", calm=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for writes in progress, and cancels those that take longer than PATIENCE."""
        await self.periodic.end()
        if self.api.tasks:
            await asyncio.wait(self.api.tasks, timeout=PATIENCE)
            for task in self.api.tasks:
                task.cancel()
