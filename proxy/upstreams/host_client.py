"""HTTP requests to one host of an upstream.  They carry nothing of a client's request but what is set here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import orjson

from proxy.errors import BadCall, Denied, NotFound, ProxyError, TooOld, UpstreamError
from proxy.types import JSON, Call
from proxy.upstreams.http1 import Connection, Origin, Unreachable, do_nothing
from proxy.wire import hops

CONNECT = 10.0
"""Seconds that connecting to a server may take, unless the call sets a limit."""
SMALL_REQUEST = 10.0
"""Seconds that a small request, such as for a list of models, may take."""


ReadError: TypeAlias = Callable[[int, bytes, str], ProxyError]
"""Status, body and model -> the error that the caller gets."""


@dataclass(frozen=True, slots=True)
class HostKind:
    """Phrases for error messages.  name: what such a host is called.  url: what its URL must look like."""

    name: str
    url: str


class HostClient:
    """server: this server's own id, for loop detection.  read_error: makes an error of a failed answer."""

    def __init__(self, origin: Origin, server: str, most: int, kind: HostKind, read_error: ReadError) -> None:
        self.origin = origin
        self.url = origin.url
        self.server = server
        self.most = most
        """Maximum bytes of one answer."""
        self.name = kind.name
        self.kind = kind
        self.read_error = read_error

    async def send(self, path: str, body: JSON, call: Call) -> Connection:
        """POST a caller's call; gives the answer, with status 200 and unread, which must be closed.

        Raises the error that the host's answer means, or UpstreamError.
        """
        more = "".join([f"{name}: {value}\r\n" for name, value in call.trail.items()]) or self.via_header()
        written = orjson.dumps(body)
        request = self.origin.head("POST", path, len(written), more) + written
        return await self.exchange(
            request, call.model, call.connect_timeout, partial(call.observer.sent, body["model"])
        )

    async def exchange(
        self, request: bytes, model: str, connect: float | None = None, written: Callable[[], None] = do_nothing
    ) -> Connection:
        try:
            answer = await self.origin.send(request, connect or CONNECT, written)
        except OSError as error:  # ConnectionBroken, Unreachable and TimeoutError are OSErrors
            raise self.connection_error(error) from error
        if answer.status == 200:
            return answer
        try:
            failed = self.read_error(answer.status, await self.read(answer), model)
            failed.wait = failed.wait if answer.retry_after is None else answer.retry_after
            failed.again = False if answer.no_retry else failed.again
            raise failed
        finally:
            answer.close()

    def via_header(self) -> str:
        """The `Via` header of a request of the proxy's own, which a client's request may have caused."""
        return f"Via: {hops.VIA.get() or hops.via_entry(self.server)}\r\n"

    async def read(self, answer: Connection) -> bytes:
        """The whole body.  Raises UpstreamError, also if it is too large."""
        parts, size = [], 0
        while data := await self.part(answer):
            parts.append(data)
            size += len(data)
            if size > self.most:
                raise UpstreamError(f"{self.name} sent an answer of more than {self.most} bytes.", "server")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def part(self, answer: Connection) -> bytes:
        """The next bytes of the body, or b"" at its end.  Raises UpstreamError."""
        try:
            return await answer.part()
        except OSError as error:
            raise self.connection_error(error) from error

    async def drain(self, answer: Connection) -> None:
        """Read and discard the rest of a body, for at most a second, so that its connection can be reused."""
        with suppress(OSError):
            async with asyncio.timeout(1):
                while await answer.part():
                    pass

    async def fetch(self, path: str, body: JSON = None, model: str = "") -> bytes:
        """The body of the answer to a small request: a GET if there is no `body`, otherwise a POST."""
        method, written = ("GET", b"") if body is None else ("POST", orjson.dumps(body))
        answer = await self.exchange(self.origin.head(method, path, len(written), self.via_header()) + written, model)
        try:
            return await self.read(answer)
        finally:
            answer.close()

    async def fetch_soon(self, path: str, body: JSON = None, model: str = "") -> bytes:
        """As `fetch`, but limited to SMALL_REQUEST seconds.  Without a model, refusals are UpstreamErrors."""
        try:
            async with asyncio.timeout(SMALL_REQUEST):
                return await self.fetch(path, body, model)
        except TimeoutError as error:
            raise self.connection_error(error) from error
        except (BadCall, Denied, NotFound, TooOld) as error:
            if model:
                raise
            raise self.configuration_error(path, error) from error

    def configuration_error(self, path: str, error: ProxyError) -> UpstreamError:
        """The error of a refused request that no caller is to blame for; a retry would be refused, too."""
        text = f"{self.url}{path}: {error}"
        if isinstance(error, NotFound | TooOld):
            text = f"{self.url} answers, but has no {path}: {self.kind.url}."
        found = UpstreamError(text, "server", code=error.code if isinstance(error, Denied | TooOld) else None)
        found.again = False
        return found

    def connection_error(self, error: OSError) -> UpstreamError:
        """A failed connection as an error that names the host."""
        if isinstance(error, TimeoutError):
            return UpstreamError(f"{self.url} did not answer in time.", "timeout")
        if isinstance(error, Unreachable):
            return UpstreamError(f"{self.url} cannot be reached: {error}.", "connect")
        return UpstreamError(f"{self.url} {error}.", "cut")
