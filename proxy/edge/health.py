"""Liveness and readiness probes.  They never run a model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from proxy.availability import Availability
from proxy.readiness import Readiness
from proxy.types import Route

FRESH = 1.0
"""Seconds for which the upstreams' states are cached, because the endpoint is public."""


@dataclass(slots=True)
class Health:
    """The probes' endpoints.

    alive: gives for each upstream why it does not answer, or "" if it does.
    availability: gives the state of the database and of each store.
    told: the last result of `alive`.  asked: when it was obtained, by the event loop's clock.
    """

    readiness: Readiness
    alive: Callable[[], Awaitable[Mapping[str, str]]]
    availability: Callable[[], Mapping[str, Availability]]
    asked: float = float("-inf")
    told: Mapping[str, str] = field(default_factory=dict)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def routes(self) -> Iterable[Route]:
        for method in ("GET", "HEAD"):
            yield Route(method, "/healthz", self.healthz, "public")
            yield Route(method, "/readyz", self.readyz, "public")

    async def healthz(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    async def readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        """200 if an upstream answers; 503 if none does, or if the server is stopping.

        Unavailable stores are only listed. All servers share them, so all would become unready at once, although most
        features work without.
        """
        told = {} if self.readiness.stopping else await self.upstreams()
        upstreams = {name: "unreachable" if why else "ok" for name, why in told.items()}
        ready = "ok" in upstreams.values() and not self.readiness.stopping
        away = [name for name, state in self.availability().items() if not state.up]
        status = "stopping" if self.readiness.stopping else "ok" if ready else "no upstream answers"
        body = orjson.dumps({"status": status, "upstreams": upstreams, "away": away})
        return web.Response(body=body, content_type="application/json", status=200 if ready else 503)

    async def upstreams(self) -> Mapping[str, str]:
        """The upstreams' states, asked for once for all who wait at the same time."""
        async with self.asking:
            if asyncio.get_running_loop().time() - self.asked > FRESH:
                self.told = await self.alive()
                self.asked = asyncio.get_running_loop().time()
        return self.told
