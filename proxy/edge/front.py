"""Every request's way in: who asks, which route, what went wrong, and one line in the log."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion11, hdrs, web

from proxy.edge.body import UNREADABLE
from proxy.edge.document import Document
from proxy.edge.exchange import CLIENT_LEFT, Exchange
from proxy.edge.gateway import Gateways
from proxy.edge.streamed import break_off
from proxy.edge.unknown_paths import UnknownPaths
from proxy.errors import Busy, Denied, NotFound, ProxyError, WrongMethod
from proxy.identity import Guard
from proxy.live import Live, Pipeline
from proxy.readiness import STOPPED, Readiness
from proxy.types import Caller
from proxy.upstreams.pool import Pool
from proxy.wire import hops

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """What the front needs of one configuration; the value of a Pipeline."""

    guard: Guard
    max_bytes: int
    patience: float
    """Seconds in which a client must take something of what waits for it."""
    gateways: Gateways
    guide: UnknownPaths
    upstreams: Mapping[str, Pool]
    doubts: Callable[[], Awaitable[Sequence[str]]]
    """Gives what of the configuration does not seem to be so."""
    stripped: frozenset[str] = frozenset()
    """Headers, in lower case, that are taken out of every request but a gateway's."""


Tell = Callable[[Exchange], None]
"""Takes a request that has ended."""


class Front:
    """The server's only handler: asks whichever pipeline is newest."""

    def __init__(self, live: Live[Door], tell: Tell | None, readiness: Readiness, server: str) -> None:
        """server: this server's own id."""
        self.live = live
        self.server = server
        self.tell = tell
        self.readiness = readiness
        self.under_way: dict[Exchange, asyncio.Task[Any] | None] = {}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange.of(request)
        self.under_way[exchange] = asyncio.current_task()
        try:
            response = await self.answered(request, exchange)
        finally:
            del self.under_way[exchange]
            if self.tell is not None:
                exchange.ended = time.perf_counter()
                self.tell(exchange)
        if self.readiness.stopping or ends_with_its_connection(request, response):
            response.force_close()
        return response

    async def answered(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        with self.live.pipeline as pipeline:
            try:
                response = await self.routed(request, exchange, pipeline)
                if not (response.prepared or isinstance(response, Document)):
                    response.headers.update(exchange.headers)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or not self.readiness.cut or not can_be_told(request):
                    # Unless the answer had already been written whole.
                    exchange.status = exchange.status or self.broken_off(exchange)
                    raise
                task.uncancel()
                return error_response(stopped(), exchange)
            except ProxyError as error:
                return failed(request, error, exchange)
            except Exception:  # the last resort: a fault of ours is told as one, and written down
                log.exception("request %s failed", exchange.id)
                message = f"The server failed to answer request {exchange.id}."
                return failed(request, ProxyError(message, code="internal_error"), exchange)
            exchange.status = exchange.status or response.status
            return response

    def cut(self) -> None:
        """Nobody waits any more for the calls under way: each is told so, as long as anything can be told it."""
        self.readiness.cut = True
        for exchange, task in list(self.under_way.items()):
            if exchange.cut is not None:
                exchange.cut(stopped())
            elif task is not None:
                task.cancel()

    def broken_off(self, exchange: Exchange) -> int:
        """The status, for the log, of a call that was cancelled: its client left, or the server waits no longer."""
        if not self.readiness.cut:
            return CLIENT_LEFT
        exchange.error = STOPPED
        return 503

    async def routed(
        self, request: web.BaseRequest, exchange: Exchange, pipeline: Pipeline[Door]
    ) -> web.StreamResponse:
        guard, gateways = pipeline.value.guard, pipeline.value.gateways
        exchange.client, exchange.scheme = gateways.client(request), gateways.scheme(request)
        exchange.via = hops.onwards(request.headers.getall(hdrs.VIA, ()), self.server)
        hops.VIA.set(exchange.via)
        try:
            guard.check_site(request)
        except Denied:
            exchange.errors = pipeline.value.guide.dialect(request.path)
            raise
        if hdrs.ORIGIN in request.headers:
            exchange.headers |= guard.cors(request)
            if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
                return preflight(exchange)
        router = pipeline.router
        if exact := router.exact.get((request.method, request.path)):
            exchange.errors = exact.errors or exchange.errors
            admitted = guard.admit(request, exact.who, exchange.client)
            exchange.caller = admitted if isinstance(admitted, Caller) else await admitted
            return await exact.handle(request)
        exchange.errors = pipeline.value.guide.dialect(request.path)
        try:
            route, names = await router.find(request)
        except NotFound:
            raise pipeline.value.guide.nowhere(request.method, request.path) from None
        exchange.errors = route.errors or exchange.errors
        admitted = guard.admit(request, route.who, exchange.client)
        exchange.caller = admitted if isinstance(admitted, Caller) else await admitted
        return await route.handle(request, **names)


def stopped() -> ProxyError:
    return Busy("The server is stopping, and did not finish this call.", code=STOPPED, wait=1.0)


def can_be_told(request: web.BaseRequest) -> bool:
    """Whether its client is there, and nothing of an answer has been written."""
    there = request.transport is not None and not request.transport.is_closing()
    return there and not request.writer.output_size


def ends_with_its_connection(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Whether nothing else tells a client where the answer ends: HTTP/1.0 has no chunks.

    aiohttp knows that for the header alone, and would leave a client that asked for keep-alive waiting for the end.
    """
    return request.version < HttpVersion11 and not isinstance(response, Document | web.Response)


def preflight(exchange: Exchange) -> web.Response:
    """What a browser asks before it lets a page call; no headers of permission mean no."""
    if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in exchange.headers:
        return web.Response(status=403)
    allowed = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PUT, DELETE, OPTIONS",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "*, Authorization",
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
    return web.Response(status=204, headers=allowed)


def failed(request: web.BaseRequest, error: ProxyError, exchange: Exchange) -> web.Response:
    """Of an answer that has begun the rest is missing, and another one behind it would be taken for that."""
    if request.writer.output_size:
        break_off(request)
    return error_response(error, exchange)


def error_response(error: ProxyError, exchange: Exchange) -> web.Response:
    exchange.status, exchange.error = error.status, error.code or error.kind
    exchange.facts = {**exchange.facts, **error.facts}
    headers = exchange.telling({})
    if error.wait is not None:
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.wait)))  # not too early
        headers["retry-after-ms"] = str(max(1, round(error.wait * 1000)))
    if error.again is not None:
        headers["x-should-retry"] = str(error.again).lower()
    if error.status == 401:
        headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if isinstance(error, WrongMethod):
        headers[hdrs.ALLOW] = ", ".join(sorted(error.allowed))
    response = web.Response(body=exchange.errors(error), status=error.status, headers=headers)
    if error.code == UNREADABLE:
        response.force_close()
    return response
