"""aiohttp's server below our front, with its limits, and with its own errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.edge.exchange import Exchange
from proxy.edge.front import error_response
from proxy.errors import BadCall, HeadTooLarge, ProxyError, WrongType

log = logging.getLogger(__name__)
LONGEST: Final = 8190
"""Maximum bytes of the URL and of each header; about nginx's default."""
OPTIONS: Final[dict[str, Any]] = {
    "access_log": None,
    "max_line_size": LONGEST,
    "max_field_size": LONGEST,
    "keepalive_timeout": 75.0,  # more than gateways keep an idle connection, so that they close theirs first
}


class Handler(web.RequestHandler):
    """One connection.  Reports aiohttp's parsing errors in OpenAI's form, and aborts the connection if the client reads
    nothing for too long, whichever part of the server wrote to it."""

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **OPTIONS)
        self.patience = server.patience
        self.look: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.look_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.look_no_more()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.look_no_more()
        super().connection_lost(exc)

    def look_later(self) -> None:
        """Check after `patience` seconds whether the client has read anything."""
        if self.transport is not None:
            left = self.transport.get_write_buffer_size()
            self.look = asyncio.get_running_loop().call_later(self.patience(), self.looked, left)

    def looked(self, left: int) -> None:
        """Abort the connection if the client has read nothing.  left: unread bytes when the timer was started."""
        if self.transport is not None and self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self.look_later()

    def look_no_more(self) -> None:
        if self.look is not None:
            self.look.cancel()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Does not log a malformed rest of a body whose request is already answered: that is the client's fault."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("a request failed outside its handler", exc_info=exc)
            error = ProxyError("The server failed to answer.", code="internal_error")
        elif isinstance(exc, ContentEncodingError):
            error = WrongType("The content encoding of the body is not supported.", code="unsupported_encoding")
        elif isinstance(exc, LineTooLong):
            told = f"The URL, or a header such as a token, is longer than the {LONGEST} bytes that are read here."
            error = HeadTooLarge(told, code="head_too_large")
        else:
            error = BadCall("The request is not HTTP as this server reads it.", code="invalid_request")
        response = error_response(error, Exchange.of(request))
        response.force_close()
        return response


class HttpServer(web.Server):
    """Passes every request to `front`."""

    def __init__(
        self,
        front: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        most: Callable[[], int],
        patience: Callable[[], float],
        unbelieved: Callable[[Any], Collection[str]] = lambda _: (),
    ) -> None:
        """most: gives the current maximum of bytes in a body.

        patience: gives the seconds after which a client that reads nothing of a waiting response is disconnected.

        unbelieved: gives, for a connection, the names in lower case of headers that its client is not trusted to send.
        They are removed before the request exists.
        """
        self.most = most
        self.patience = patience
        self.unbelieved = unbelieved
        # A client that leaves before the first byte must be noticed.
        super().__init__(front, request_factory=self.request_of, handler_cancellation=True)

    # aiohttp calls it with five arguments whose types it does not export.
    def request_of(self, message, payload, protocol, writer, task):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        loop = asyncio.get_running_loop()
        if names := self.unbelieved(protocol):
            message = without(message, names)
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self.most())

    def __call__(self) -> Handler:
        return Handler(self)


def without(message: Any, names: Collection[str]) -> Any:
    """A request's head without these headers.  names: in lower case."""
    if not any(name in message.headers for name in names):
        return message
    kept = [(name, value) for name, value in message.headers.items() if name.lower() not in names]
    raw = tuple((name, value) for name, value in message.raw_headers if name.decode("latin-1").lower() not in names)
    return message._replace(headers=CIMultiDictProxy(CIMultiDict(kept)), raw_headers=raw)
