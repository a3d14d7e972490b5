"""HTTP with one host of an upstream: nothing of a client's own request goes through but what is put here."""

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
from proxy.upstreams.http1 import Connection, Origin, Unreachable, nobody
from proxy.wire import hops

CONNECT = 10.0
"""Seconds that a server may take to accept a connection, unless a call says otherwise."""
SMALL = 10.0
"""Seconds that a list of models, or the like, may take."""


ReadError: TypeAlias = Callable[[int, bytes, str], ProxyError]
"""Status, body and model -> what they mean to the caller."""


@dataclass(frozen=True, slots=True)
class Kind:
    """name: what such a host is called in messages.  url: how its URL is written."""

    name: str
    url: str


class Remote:
    """server: this server's own id.  kind: the upstream's, which says what its errors mean."""

    def __init__(self, origin: Origin, server: str, most: int, kind: Kind, read_error: ReadError) -> None:
        self.origin = origin
        self.url = origin.url
        self.server = server
        self.most = most
        """Bytes that one answer may have."""
        self.name = kind.name
        self.kind = kind
        self.read_error = read_error

    async def send(self, path: str, body: JSON, call: Call) -> Connection:
        """The answer to a caller's call, with status 200, not yet read; whoever gets it closes it.

        Raises the error that the host's answer means, or UpstreamError.
        """
        more = "".join([f"{name}: {value}\r\n" for name, value in call.trail.items()]) or self.own()
        written = orjson.dumps(body)
        request = self.origin.head("POST", path, len(written), more) + written
        return await self.exchange(
            request, call.model, call.connect_timeout, partial(call.observer.sent, body["model"])
        )

    async def exchange(
        self, request: bytes, model: str, connect: float | None = None, written: Callable[[], None] = nobody
    ) -> Connection:
        try:
            answer = await self.origin.ask(request, connect or CONNECT, written)
        except OSError as error:  # Broken, Unreachable and TimeoutError are OSErrors
            raise self.blamed(error) from error
        if answer.status == 200:
            return answer
        try:
            failed = self.read_error(answer.status, await self.read(answer), model)
            failed.wait = failed.wait if answer.wait_for is None else answer.wait_for
            failed.again = False if answer.final else failed.again
            raise failed
        finally:
            answer.close()

    def own(self) -> str:
        """The header lines of what is not a caller's call, though a request may be the reason."""
        return f"Via: {hops.VIA.get() or hops.named(self.server)}\r\n"

    async def read(self, answer: Connection) -> bytes:
        """The whole body, bounded.  Raises UpstreamError."""
        parts, size = [], 0
        while data := await self.part(answer):
            parts.append(data)
            size += len(data)
            if size > self.most:
                raise UpstreamError(f"{self.name} sent an answer of more than {self.most} bytes.", "server")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def part(self, answer: Connection) -> bytes:
        """What has arrived of the body, or b"" at its end."""
        try:
            return await answer.part()
        except OSError as error:
            raise self.blamed(error) from error

    async def finish(self, answer: Connection) -> None:
        """Read the end of a body of which nothing more is wanted, so that its connection can be used again."""
        with suppress(OSError):
            async with asyncio.timeout(1):
                while await answer.part():
                    pass

    async def ask(self, path: str, body: JSON = None, model: str = "") -> bytes:
        """One small document; a GET where there is no body."""
        method, written = ("GET", b"") if body is None else ("POST", orjson.dumps(body))
        answer = await self.exchange(self.origin.head(method, path, len(written), self.own()) + written, model)
        try:
            return await self.read(answer)
        finally:
            answer.close()

    async def ask_soon(self, path: str, body: JSON = None, model: str = "") -> bytes:
        """The same for what must not take long, because no model runs."""
        try:
            async with asyncio.timeout(SMALL):
                return await self.ask(path, body, model)
        except TimeoutError as error:
            raise self.blamed(error) from error
        except (BadCall, Denied, NotFound, TooOld) as error:
            if model:
                raise
            raise self.amiss(path, error) from error

    def amiss(self, path: str, error: ProxyError) -> UpstreamError:
        """What is wrong where nobody's call can be at fault; another try would not find it otherwise."""
        text = f"{self.url}{path}: {error}"
        if isinstance(error, NotFound | TooOld):
            text = f"{self.url} answers, but has no {path}: {self.kind.url}."
        found = UpstreamError(text, "server", code=error.code if isinstance(error, Denied | TooOld) else None)
        found.again = False
        return found

    def blamed(self, error: OSError) -> UpstreamError:
        """What went wrong with a connection, and with whom."""
        if isinstance(error, TimeoutError):
            return UpstreamError(f"{self.url} did not answer in time.", "timeout")
        if isinstance(error, Unreachable):
            return UpstreamError(f"{self.url} cannot be reached: {error}.", "connect")
        return UpstreamError(f"{self.url} {error}.", "cut")
