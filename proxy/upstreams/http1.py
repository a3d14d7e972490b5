"""A keep-alive HTTP/1.1 client for one origin: POST or GET, with the answer's body read while it arrives.

aiohttp's client does far more (redirects, cookies, proxies, compression, tracing), which between a proxy and its
upstream costs more than all the rest of a call.  httptools parses; this module has the connection pool.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
from aiohappyeyeballs import start_connection

from proxy.wire import retry_after

IDLE: Final = 30.0
"""Seconds that an unused connection is kept."""
NEXT_ADDRESS_AFTER: Final = 0.25
"""Seconds after which the next address of a host name is tried in parallel (Happy Eyeballs, RFC 8305)."""
MOST_IDLE: Final = 100
"""Maximum number of unused connections kept per origin."""
MOST_HEAD_BYTES: Final = 65_536
"""Maximum bytes of an answer's head."""
HIGH_WATER_MARK: Final = 262_144
"""High-water mark: bytes of a body that are buffered before reading from the socket is paused."""


@lru_cache(1)
def tls_context() -> ssl.SSLContext:
    """A TLS context with the system's certificates; cached, as loading them blocks the event loop for some 30 ms."""
    return ssl.create_default_context()


def do_nothing() -> None:
    """The default for the parameter `written`: does nothing."""


class ConnectionBroken(ConnectionError):
    """A connection ended, or carried invalid HTTP, during an exchange."""


class Unreachable(OSError):
    """No connection could be made; the message says why."""


class Connection(asyncio.Protocol):
    """One connection, and the answer that is being received on it."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.broken: str | None = None
        self.idle_since = 0.0
        self.paused = False
        self.begin()

    def begin(self) -> None:
        """Reset the state of the previous answer."""
        self.status = 0
        self.retry_after: float | None = None
        """Seconds after which the server wants a retry, None if it does not say."""
        self.no_retry = False
        """Whether the server says that a retry is pointless."""
        self.framed = False
        self.head = 0
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = self.reusable = False

    # --- what the event loop calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a TCP connection's is always a Transport

    def data_received(self, data: bytes) -> None:
        if self.complete:
            self.fail("spoke when it was not asked")
            return
        if not self.status:
            self.head += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"sent what is no HTTP: {error}")
        if self.head > MOST_HEAD_BYTES and not self.status:
            self.fail("sent a head that does not end")
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self.status and not self.framed and error is None:
            self.complete = True  # a body without a declared length ends with its connection
        self.broken = self.broken or "broke off the connection"
        self.origin.remove_idle(self)
        self.wake()

    # --- what the parser calls -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer to one request, which must not be taken for a part of the first
            raise ConnectionBroken("spoke when it was not asked")  # ends the parsing; the first answer remains valid

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-length" or lower == b"transfer-encoding":
            self.framed = True  # otherwise the body ends with the connection
        elif lower == b"retry-after" and self.retry_after is None:
            self.retry_after = retry_after.seconds(value)
        elif lower == b"retry-after-ms" and (exact := retry_after.milliseconds(value)) is not None:
            self.retry_after = exact
        elif lower == b"x-should-retry":
            self.no_retry = value.lower() == b"false"

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        self.status = status if status >= 200 else 0

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)
        if self.size > HIGH_WATER_MARK and not self.paused and self.transport is not None:
            self.paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self.reusable = self.parser.should_keep_alive()

    # --- what the caller calls -----------------------------------------------------------------------

    def fail(self, why: str) -> None:
        self.broken = self.broken or why
        if self.transport is not None:
            self.transport.abort()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    async def exchange(self, request: bytes, written: Callable[[], None]) -> None:
        """Send a request and wait for the head of its answer.  written: called in between.  Raises ConnectionBroken."""
        if self.transport is None:
            raise ConnectionBroken("is not connected")
        self.begin()
        self.transport.write(request)
        written()
        while not self.status:
            if self.broken:
                raise ConnectionBroken(self.broken)
            await self.wait()

    async def part(self) -> bytes:
        """The next bytes of the body, or b"" at its end.  Raises ConnectionBroken if it ends too early."""
        while not self.parts:
            if self.complete:
                return b""
            if self.broken:
                raise ConnectionBroken(self.broken)
            await self.wait()
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts.clear()
        self.size = 0
        if self.paused and self.transport is not None:
            self.paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()
        return data

    @property
    def is_sent(self) -> bool:
        """Whether the whole request has been sent.  A server that answers earlier may never read the rest, and the next
        request on this connection would wait behind it."""
        return self.transport is not None and not self.transport.get_write_buffer_size()

    def close(self) -> None:
        """End the exchange.  The connection is reused if the request was sent and the answer read, both completely."""
        if self.reusable and not self.parts and not self.broken and self.is_sent:
            self.origin.put_idle(self)
        else:
            self.fail("was closed")


class Origin:
    """The connection pool of one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.host, self.tls = parts.hostname or "", tls_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        is_name = self.host.replace(".", "").strip("0123456789") and ":" not in self.host
        self.address: dict[str, Any] = {} if is_name else {"host": self.host, "port": self.port}
        """Host and port if the URL has an IP address; empty if a host name must be resolved."""
        self.path = parts.path
        self.name = parts.netloc
        self.headers = ""
        """Lines that every request carries, each with its line break."""
        self.idle: deque[Connection] = deque()

    def head(self, method: str, path: str, length: int, more: str = "") -> bytes:
        """length: bytes of the JSON body, 0 if there is none.  more: further header lines."""
        kind = f"Content-Type: application/json\r\nContent-Length: {length}\r\n" if length else ""
        lines = f"{method} {self.path}{path} HTTP/1.1\r\nHost: {self.name}\r\n{self.headers}{more}{kind}\r\n"
        return lines.encode()

    async def send(self, request: bytes, connect: float, written: Callable[[], None] = do_nothing) -> Connection:
        """Send a request; gives its answer, unread, which the caller must close.

        request: a `head` and its body.  written: called when the request has been passed to the connection.
        Raises ConnectionBroken, or Unreachable if no connection can be made within `connect` seconds.
        """
        connection = self.take_idle() or await self.connect(connect)
        try:
            await connection.exchange(request, written)
        except BaseException:
            connection.fail("was given up")
            raise
        return connection

    async def connect(self, limit: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), ssl=self.tls, **(self.address or await self.connect_by_name())
                )
        except TimeoutError as error:
            raise Unreachable(f"it accepted no connection within {limit:g} seconds") from error
        except OSError as error:
            raise Unreachable(reason_of(error)) from error
        return connection

    async def connect_by_name(self) -> dict[str, Any]:
        """A socket connected to the first address of the host name that answers; uvloop lacks Happy Eyeballs."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        made = await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_AFTER, loop=loop)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return {"sock": made, "server_hostname": self.host if self.tls else None}

    def take_idle(self) -> Connection | None:
        """The most recently used idle connection that is neither too old nor broken, or None."""
        oldest = asyncio.get_running_loop().time() - IDLE
        while self.idle:
            connection = self.idle.pop()
            if connection.idle_since > oldest and not connection.broken:
                return connection
            connection.fail("was idle")
        return None

    def put_idle(self, connection: Connection) -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self.idle.append(connection)
        if len(self.idle) > MOST_IDLE:
            self.idle.popleft().fail("was not needed")

    def remove_idle(self, connection: Connection) -> None:
        if connection in self.idle:
            self.idle.remove(connection)

    def close(self) -> None:
        while self.idle:
            self.idle.pop().fail("was closed")


def reason_of(error: OSError) -> str:
    """Why no connection could be made."""
    if isinstance(error, ssl.SSLError):
        plain = error.reason == "WRONG_VERSION_NUMBER"
        return f"TLS failed: {'it speaks plain HTTP; use http://' if plain else error.reason or error}"
    if isinstance(error, socket.gaierror):  # its `errno` is not one of the system's
        return "its host name is not known"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    # If each address of a name such as `localhost` fails, asyncio raises one error that only contains them as text.
    return os.strerror(errno.ECONNREFUSED).lower() if f"Errno {errno.ECONNREFUSED}]" in str(error) else str(error)
