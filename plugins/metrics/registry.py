"""Where the instruments live: in this process, or in files that all workers of a server share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from proxy.host import Place

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Registry(Protocol):
    """own: where instruments are registered, None where they are in files."""

    own: CollectorRegistry | None

    def all(self) -> CollectorRegistry:
        """What is told of the whole server."""


class Single:
    """Of a server with one process, which tells of the process, too."""

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
    """Of one worker among several: whichever is asked tells of all.

    Files are named by the worker's seat, not by its process: whoever takes the seat of one that died goes on counting
    where that one was, so that nothing goes backwards and no files gather.
    """

    own: CollectorRegistry | None = None

    def __init__(self, place: Place) -> None:
        os.environ[FOLDER] = place.folder  # which the library looks for when it is imported
        from prometheus_client import values

        from plugins.metrics.files import Filled  # which imports the library

        # The library has no types here, nor below.
        values.MmapedDict = Filled  # type: ignore[attr-defined]
        values.ValueClass = values.MultiProcessValue(lambda: place.index)  # type: ignore[no-untyped-call]

    def all(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        found = CollectorRegistry()
        MultiProcessCollector(found)  # type: ignore[no-untyped-call]
        return found


def registry_of(place: Place) -> Registry:
    return Several(place) if place.folder else Single()
