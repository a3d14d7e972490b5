"""A plugin that measures how long the event loop of its server is held up: `use: tests.bench.lag:Lag`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final, Self

import orjson
from aiohttp import web

from proxy.config import Strict
from proxy.host import Host
from proxy.types import Route

EVERY: Final = 0.005


class Lag:
    """worst: seconds that it was late, on a machine that may have other things to do.  busy: the longest that its own
    thread computed without a break."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self.worst = self.busy = 0.0

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/lag", self.told, "public")

    async def __aenter__(self) -> Self:
        self.task = self.host.background.start(self.run(), "measuring the loop")
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.task.cancel()

    async def run(self) -> None:
        while True:
            begun, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(EVERY)
            self.worst = max(self.worst, time.perf_counter() - begun - EVERY)
            self.busy = max(self.busy, time.thread_time() - computed)

    async def told(self, _: web.BaseRequest) -> web.StreamResponse:
        """What it was since it was asked last."""
        said = orjson.dumps({"worst": self.worst, "busy": self.busy})
        self.worst = self.busy = 0.0
        return web.Response(body=said, content_type="application/json")
