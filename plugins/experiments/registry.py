"""The current experiments; a change reaches every process within seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from plugins.experiments.index import Experiment, ExperimentIndex
from plugins.experiments.store import Rows, Store, Version, together
from proxy.errors import NotFound
from proxy.host import Host

LOOK: Final = 2.0
"""Seconds between two checks for changes."""


class ExperimentRegistry:
    """files: the experiments of the configuration."""

    def __init__(self, store: Store, files: Sequence[Experiment], host: Host) -> None:
        self.store = store
        self.files = files
        self.noted = False
        self.version: Version | None = None
        self.rows: list[Rows] = host.process_state("experiments rows", list)
        """The rows read last; they survive a reload, even if the database is unavailable then."""
        self.index = ExperimentIndex(together(files, self.rows[0]) if self.rows else files)

    async def read(self) -> None:
        """Load the experiments if any has changed since the last check.  Raises DatabaseAway."""
        if not self.noted:
            await self.note()
        version = await self.store.version()
        if version != self.version:
            rows = await self.store.rows(self.files)
            self.rows[:], self.version = [rows], version
            self.index = ExperimentIndex(together(self.files, rows))

    async def note(self) -> None:
        """Record in the database that the configuration's experiments are in use, so that their figures are kept."""
        await self.store.note(self.files)
        self.noted = True

    async def find(self, id: str) -> Experiment:
        """An experiment by id or name, up to date.  Raises NotFound."""
        await self.read()
        found = self.index.ids.get(id) or self.index.names.get(id)
        if found is None and id.isprintable():
            found = await self.store.one(id)
        if found is None:
            raise missing(id, "id")
        return found


def missing(name: str, param: str) -> NotFound:
    return NotFound(f"There is no experiment '{name[:100]}'.", param=param, code="experiment_not_found")
