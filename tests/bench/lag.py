"""A plugin that measures how long the server's event loop is blocked: `use: tests.bench.lag:Lag`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import orjson
from aiohttp import web

from proxy.config import Strict
from proxy.host import Host
from proxy.types import Route

EVERY: Final = 0.005


class Lag:
    """worst: maximum delay of a timer, in seconds.  held: the same without the time in which other processes had the
    processor.  busy: maximum CPU time of the loop's thread between two runs of the timer."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self.worst = self.held = self.busy = 0.0

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/lag", self.told, "public")

    async def __aenter__(self) -> Self:
        self.task = self.host.background.start(self.run(), "measuring the loop")
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.task.cancel()

    async def run(self) -> None:
        while True:
            begun, computed, waited = time.perf_counter(), time.thread_time(), queued()
            await asyncio.sleep(EVERY)
            late = time.perf_counter() - begun - EVERY
            self.worst = max(self.worst, late)
            self.held = max(self.held, late - (queued() - waited))
            self.busy = max(self.busy, time.thread_time() - computed)

    async def told(self, _: web.BaseRequest) -> web.StreamResponse:
        """The values since the last request, which are then reset."""
        said = orjson.dumps({"worst": self.worst, "held": self.held, "busy": self.busy})
        self.worst = self.held = self.busy = 0.0
        return web.Response(body=said, content_type="application/json")


def queued() -> float:
    """Seconds that this thread was runnable but waited for a processor; 0 if the system does not report that.

    Source: Linux, Documentation/scheduler/sched-stats.rst.
    """
    try:
        told = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(told.split()[1]) / 1e9
