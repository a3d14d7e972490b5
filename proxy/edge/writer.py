"""Writes the answer to a call, whole or as a stream, in the request's dialect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol

from aiohttp import web

from proxy.config import Streams
from proxy.edge.document import Document
from proxy.edge.exchange import CLIENT_LEFT, Exchange, exchange_of
from proxy.edge.stream_buffer import StreamBuffer
from proxy.errors import ProxyError, UpstreamError
from proxy.host import Frames
from proxy.streams import Answer, Replay, collect
from proxy.types import Call, Event, Events, Handler, Usage
from proxy.wire.openai_answer import fingerprint
from proxy.wire.openai_errors import SseStyle

log = logging.getLogger(__name__)

STREAM_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would otherwise collect the stream
}
UNWAITED: Final = 65_536
"""Bytes that a connection buffers before a write waits for the client: asyncio's default."""


class Chunks(Protocol):
    """Writes one streamed answer, event by event."""

    usage: Usage | None

    def write(self, event: Event) -> bytes: ...

    def end(self) -> bytes: ...


class Style(Protocol):
    """How to write the answer to one call.  A dialect consists of a Style and a module of the edge."""

    @property
    def media_type(self) -> str:
        """The content type of a stream."""

    def whole(self, answer: Answer, fingerprint: str) -> bytes: ...

    def chunks(self, fingerprint: str) -> Chunks: ...

    def comment(self, text: str) -> bytes:
        """A heartbeat that clients skip; b"" if the dialect has none."""

    def failed(self, error: ProxyError) -> bytes:
        """An error in a stream that has begun."""


class Writer:
    def __init__(self, send: Handler, streams: Streams) -> None:
        self.send = send
        self.streams = streams

    async def answer(
        self, request: web.BaseRequest, call: Call, style: Style, notes: Mapping[str, str]
    ) -> web.StreamResponse:
        """Send the call and write its answer.  Raises what the chain raises before the first byte was written."""
        exchange = exchange_of(request)
        exchange.model, exchange.route = call.model, call.route
        if call.stream:
            return await self.streamed(request, call, style, notes)
        answer = await in_time(self.send, call, exchange)
        body = style.whole(answer, fingerprint(exchange.facts))
        response = Document(body, exchange.telling(notes))
        if len(body) > UNWAITED:
            await self.delivered(request, exchange, response)
        return response

    async def delivered(self, request: web.BaseRequest, exchange: Exchange, response: Document) -> None:
        """Write a large answer and wait until the client has read enough of it, to log a client that left."""
        try:
            await response.prepare(request)
            exchange.status = response.status
        except ConnectionError:
            exchange.status = CLIENT_LEFT

    async def streamed(
        self, request: web.BaseRequest, call: Call, style: Style, notes: Mapping[str, str]
    ) -> web.StreamResponse:
        buffer = StreamBuffer(self.streams, style.comment)
        pump = self.pump(request, call.but(progress=buffer.progress), style, buffer)
        return await self.let_out(request, buffer, pump, style, notes)

    async def stream(self, request: web.BaseRequest, frames: Frames) -> web.StreamResponse:
        """Write server-sent events of a plugin's own endpoint, by the same rules as a streamed answer."""
        style = SseStyle()
        buffer = StreamBuffer(self.streams, style.comment)
        return await self.let_out(request, buffer, self.pour(request, frames, style, buffer), style, {})

    async def let_out(
        self,
        request: web.BaseRequest,
        buffer: StreamBuffer,
        filling: Coroutine[Any, Any, None],
        style: Style | SseStyle,
        notes: Mapping[str, str],
    ) -> web.StreamResponse:
        """Write from the buffer while `filling` puts bytes into it.  If the client leaves, `filling` is cancelled."""
        exchange = exchange_of(request)
        exchange.cut = partial(self.failed, request, style=style, buffer=buffer)
        # Not a Background task: it belongs to this request and ends with it.
        pump = buffer.loop.create_task(filling, name=f"pump {exchange.id}")
        try:
            first = await buffer.take()
            response = web.StreamResponse(
                headers={**exchange.telling(notes), **STREAM_HEADERS, "Content-Type": style.media_type}
            )
            try:
                await response.prepare(request)
                while first:
                    await response.write(first)
                    first = await buffer.take()
                await response.write_eof()
                exchange.status = response.status
            except ConnectionError:
                exchange.status = CLIENT_LEFT
            return response
        finally:
            exchange.cut = None  # breaks a reference cycle, which only the garbage collector would free
            buffer.close()
            if not pump.done():
                pump.cancel()
                await asyncio.wait([pump])

    async def pump(self, request: web.BaseRequest, call: Call, style: Style, buffer: StreamBuffer) -> None:
        """Run the call and put its events into the buffer, whose buffer separates the upstream from a slow client."""
        exchange = exchange_of(request)
        try:
            reply = await self.send(call)
            try:
                exchange.answered(reply.facts)
                chunks = style.chunks(fingerprint(reply.facts))
                await written(reply.events, chunks, buffer)
                buffer.put(chunks.end())
                exchange.usage = chunks.usage
            finally:
                await reply.aclose()
            buffer.end()
        except ProxyError as error:
            self.failed(request, error, style, buffer)
        except Exception:
            log.exception("request %s failed", call.id)
            self.failed(request, ProxyError("The server failed to answer.", code="internal_error"), style, buffer)

    async def pour(self, request: web.BaseRequest, frames: Frames, style: SseStyle, buffer: StreamBuffer) -> None:
        """Put the events of a plugin's own endpoint into the buffer, as `pump` does with those of a call."""
        try:
            async with aclosing(frames(buffer.progress)) as parts:
                async for part in parts:
                    buffer.put(part)
                    if buffer.is_full:
                        await buffer.until_room()
            buffer.end()
        except ProxyError as error:
            self.failed(request, error, style, buffer)
        except Exception:
            log.exception("request %s failed", exchange_of(request).id)
            self.failed(request, ProxyError("The server failed to answer.", code="internal_error"), style, buffer)

    def failed(
        self, request: web.BaseRequest, error: ProxyError, style: Style | SseStyle, buffer: StreamBuffer
    ) -> None:
        exchange_of(request).error = error.code or error.kind
        buffer.fail(error, style.failed(error))


async def written(events: Events, chunks: Chunks, buffer: StreamBuffer) -> None:
    """Put all events into the buffer.  Raises ReaderTooSlow."""
    if type(events) is Replay:  # its events are there already: iterating asynchronously would double the time
        for event in events.rest:
            buffer.put(chunks.write(event))
            if buffer.is_full:
                await buffer.until_room()
        return
    async for event in events:
        buffer.put(chunks.write(event))
        if buffer.is_full:
            await buffer.until_room()


async def in_time(send: Handler, call: Call, exchange: Exchange) -> Answer:
    """The whole answer to a call, within its caller's deadline.

    Raises UpstreamError at the deadline, because OpenAI's SDKs would time out a moment later and retry.
    """
    if call.deadline is None:
        return await collected(send, call, exchange)
    try:
        async with asyncio.timeout_at(call.deadline.at):
            return await collected(send, call, exchange)
    except TimeoutError:
        error = UpstreamError("The answer was not complete before its caller's own limit.", "timeout")
        error.again = False
        raise error from None


async def collected(send: Handler, call: Call, exchange: Exchange) -> Answer:
    reply = await send(call)
    exchange.answered(reply.facts)
    answer = await collect(reply)  # part of it may still have to arrive, if the call joined a running stream
    exchange.usage = answer.usage
    return answer
