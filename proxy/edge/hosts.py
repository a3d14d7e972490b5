"""The state of every upstream's hosts, for admins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson
from aiohttp import web

from proxy.types import Route
from proxy.upstreams.pool import Pool


@dataclass(frozen=True, slots=True)
class Hosts:
    pools: Mapping[str, Pool]

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/hosts", self.answer)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        told = {"upstreams": {name: pool.report() for name, pool in self.pools.items()}}
        return web.Response(body=orjson.dumps(told), content_type="application/json")
