"""Where the metrics are kept: in this process, or in files shared by all workers of a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from proxy.host import WorkerInfo

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Registry(Protocol):
    """own: where metrics are registered; None if they are kept in files."""

    own: CollectorRegistry | None

    def all(self) -> CollectorRegistry:
        """The metrics of the whole server."""


class Single:
    """For a server with one process; includes metrics of the process itself."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

        self.own: CollectorRegistry | None = CollectorRegistry()
        ProcessCollector(registry=self.own)
        GCCollector(registry=self.own)

    def all(self) -> CollectorRegistry:
        if self.own is None:
            raise TypeError("it has one")
        return self.own


class Several:
    """For one of several workers; each can answer for all.

    Files are named by the worker's index, not its process id: the replacement of a worker that died continues its
    files, so counters never decrease and no files accumulate.
    """

    own: CollectorRegistry | None = None

    def __init__(self, worker_info: WorkerInfo) -> None:
        os.environ[FOLDER] = worker_info.folder  # the library reads it when it is imported
        from prometheus_client import values

        from plugins.metrics.files import Filled  # imports the library

        # The library has no types, here and below.
        values.MmapedDict = Filled  # type: ignore[attr-defined]
        values.ValueClass = values.MultiProcessValue(lambda: worker_info.index)  # type: ignore[no-untyped-call]

    def all(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        found = CollectorRegistry()
        MultiProcessCollector(found)  # type: ignore[no-untyped-call]
        return found


def registry_of(worker_info: WorkerInfo) -> Registry:
    return Several(worker_info) if worker_info.folder else Single()
