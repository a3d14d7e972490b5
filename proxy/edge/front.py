"""The entry point of every request: authentication, routing, error responses and the access log."""

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
class FrontConfig:
    """What the front needs of a configuration; it is replaced on reload, as the value of the Pipeline."""

    guard: Guard
    max_bytes: int
    patience: float
    """Seconds after which a client that reads nothing of a waiting response is disconnected."""
    gateways: Gateways
    guide: UnknownPaths
    upstreams: Mapping[str, Pool]
    doubts: Callable[[], Awaitable[Sequence[str]]]
    """Gives warnings about what in the configuration does not match reality."""
    stripped: frozenset[str] = frozenset()
    """Headers, in lower case, that are removed from every request that a trusted gateway did not send."""


Tell = Callable[[Exchange], None]
"""Is called with every finished request, for the log."""


class Front:
    """The server's only handler.  Every request runs through the newest pipeline."""

    def __init__(self, live: Live[FrontConfig], tell: Tell | None, readiness: Readiness, server: str) -> None:
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
                if task is None or not self.readiness.cut or not can_be_answered(request):
                    # A status that is already set belongs to an answer that was written whole.
                    exchange.status = exchange.status or self.broken_off(exchange)
                    raise
                task.uncancel()
                return error_response(stopped(), exchange)
            except ProxyError as error:
                return failed(request, error, exchange)
            except Exception:  # the last resort: a bug of ours is logged, and reported as a 500
                log.exception("request %s failed", exchange.id)
                message = f"The server failed to answer request {exchange.id}."
                return failed(request, ProxyError(message, code="internal_error"), exchange)
            exchange.status = exchange.status or response.status
            return response

    def cut(self) -> None:
        """At shutdown, stop waiting for running calls: end each with an error that the client can still read."""
        self.readiness.cut = True
        for exchange, task in list(self.under_way.items()):
            if exchange.cut is not None:
                exchange.cut(stopped())
            elif task is not None:
                task.cancel()

    def broken_off(self, exchange: Exchange) -> int:
        """The status to log for a cancelled call: its client left, or the server has stopped waiting for it."""
        if not self.readiness.cut:
            return CLIENT_LEFT
        exchange.error = STOPPED
        return 503

    async def routed(
        self, request: web.BaseRequest, exchange: Exchange, pipeline: Pipeline[FrontConfig]
    ) -> web.StreamResponse:
        guard, gateways = pipeline.value.guard, pipeline.value.gateways
        exchange.client, exchange.scheme = gateways.client(request), gateways.scheme(request)
        exchange.via = hops.extended_via(request.headers.getall(hdrs.VIA, ()), self.server)
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


def can_be_answered(request: web.BaseRequest) -> bool:
    """Whether the client is still connected and no part of an answer has been written."""
    there = request.transport is not None and not request.transport.is_closing()
    return there and not request.writer.output_size


def ends_with_its_connection(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Whether only the end of the connection marks the end of the answer, because HTTP/1.0 has no chunks.

    aiohttp only writes the header for it, and would leave a client that asked for keep-alive waiting for the end.
    """
    return request.version < HttpVersion11 and not isinstance(response, Document | web.Response)


def preflight(exchange: Exchange) -> web.Response:
    """The answer to a CORS preflight request: 403 if the origin is not allowed."""
    if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in exchange.headers:
        return web.Response(status=403)
    allowed = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PUT, DELETE, OPTIONS",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "*, Authorization",
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
    return web.Response(status=204, headers=allowed)


def failed(request: web.BaseRequest, error: ProxyError, exchange: Exchange) -> web.Response:
    """The error response.  If an answer has begun, the connection is broken off instead, because a client would take a
    second response for the rest of the first."""
    if request.writer.output_size:
        break_off(request)
    return error_response(error, exchange)


def error_response(error: ProxyError, exchange: Exchange) -> web.Response:
    exchange.status, exchange.error = error.status, error.code or error.kind
    exchange.facts = {**exchange.facts, **error.facts}
    headers = exchange.telling({})
    if error.wait is not None:
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.wait)))  # rounded up, so that nobody retries too early
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
