"""Relays Ollama's endpoints that change its models, for admins, if the configuration enables them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import hdrs, web

from proxy.edge.body import welcome
from proxy.edge.calls import trail
from proxy.edge.exchange import CLIENT_LEFT, exchange_of
from proxy.edge.writer import STREAM_HEADERS
from proxy.errors import BadCall, UpstreamError, WrongType
from proxy.types import Route
from proxy.upstreams.pool import Pool
from proxy.upstreams.waiting_queue import address_of
from proxy.wire.ollama_out import error_body

CONNECT: Final = 10.0
"""Seconds to connect.  There is no other timeout, because a pull may take hours."""
HOST: Final = "x-gemmapy-host"
DIGEST: Final = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
PATHS: Final = (
    ("POST", "/api/create"),
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
)


@dataclass(frozen=True, slots=True)
class OllamaWrites:
    """pool: the hosts whose models may be changed."""

    http: aiohttp.ClientSession
    pool: Pool

    def routes(self) -> Iterable[Route]:
        for method, path in PATHS:
            yield Route(method, path, self.write, "admin", error_body)
        for method in ("HEAD", "POST"):
            yield Route(method, "/api/blobs/{digest}", self.blob, "admin", error_body)

    async def write(self, request: web.BaseRequest) -> web.StreamResponse:
        """Relay to one of `PATHS`, without a base path before it."""
        return await self.relayed(request, f"/api/{request.path.rpartition('/')[2]}")

    async def blob(self, request: web.BaseRequest, digest: str) -> web.StreamResponse:
        if not DIGEST.fullmatch(digest):
            raise BadCall(f"Invalid 'digest': '{digest[:100]}' is not sha256: and 64 hexadecimal digits.")
        return await self.relayed(request, f"/api/blobs/{digest}")

    def host(self, request: web.BaseRequest) -> str:
        """The URL of the requested host.  Raises BadCall if there are several and none of them is named."""
        hosts = {address_of(url): url for url in self.pool.members}
        named = request.headers.get(HOST)
        if named is None and len(hosts) == 1:
            return next(iter(hosts.values()))
        if named in hosts:
            return hosts[named]
        raise BadCall(f"The upstream has several hosts: name one in the header {HOST}: {', '.join(hosts)}.")

    async def relayed(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Send a request to the host and stream its answer back.  Raises UpstreamError if it cannot be reached."""
        url = self.host(request)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            # aiohttp would decompress it, but the Content-Length that is sent on is that of the compressed body.
            raise WrongType("A compressed body is not accepted here.", code="unsupported_encoding")
        await welcome(request)
        headers = dict(trail(request))
        for name in (hdrs.CONTENT_TYPE, hdrs.CONTENT_LENGTH):
            if name in request.headers:
                headers[name] = request.headers[name]
        body = request.content.iter_any() if request.body_exists else None
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)
        try:
            answer = await self.http.request(
                request.method, url + path, data=body, headers=headers, timeout=patience, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(f"{url} cannot be reached: {error}.", "connect") from error
        async with answer:
            try:
                return await self.copied(request, answer)
            finally:
                self.pool.mark_outdated(url)

    async def copied(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        exchange = exchange_of(request)
        response = web.StreamResponse(status=answer.status, headers={**exchange.headers, **STREAM_HEADERS})
        if hdrs.CONTENT_TYPE in answer.headers:
            response.headers[hdrs.CONTENT_TYPE] = answer.headers[hdrs.CONTENT_TYPE]
        if request.method == hdrs.METH_HEAD or answer.headers.get(hdrs.CONTENT_LENGTH) == "0":
            response.content_length = 0
        exchange.status = answer.status
        protocol = answer.connection.protocol if answer.connection is not None and unframed(answer) else None
        try:
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            if protocol is not None and isinstance(protocol.exception(), OSError):
                raise aiohttp.ClientPayloadError("the connection was reset, which aiohttp takes for its end")
            await response.write_eof()
        except aiohttp.ClientPayloadError:
            exchange.error = "upstream_cut"
            if request.transport is not None:  # a normal end would hide that the rest is missing
                request.transport.abort()
        except ConnectionError:
            exchange.status = CLIENT_LEFT
        return response


def unframed(answer: aiohttp.ClientResponse) -> bool:
    """Whether only the end of the connection marks the end of the body."""
    return hdrs.CONTENT_LENGTH not in answer.headers and hdrs.TRANSFER_ENCODING not in answer.headers
