"""OpenAI's endpoints for stored responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Final

from aiohttp import web
from pydantic import Field

from plugins.stored import retention
from plugins.stored.answers import RESPONSE, Document, StoredAnswer
from plugins.stored.event_stream import behind, live_stream, replayed_stream
from plugins.stored.paging import Order, Page, document, page_among
from plugins.stored.runs import Runs, cancelled
from plugins.stored.store import Store
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.host import Host
from proxy.types import Moment, Route
from proxy.wire import sse
from proxy.wire.openai_items import Include
from proxy.wire.openai_responses_out import Response

LOOK: Final = 0.5
"""Seconds between two checks whether a response of another process has ended."""
STREAM: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers the stream
}


class Asked(Strict):
    """stream: return the events after `starting_after`.  include: accepted, but everything is always included."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0)] | None = None
    include: tuple[Include, ...] = ()
    include_obfuscation: bool = False


class Items(Page):
    order: Order = "desc"
    include: tuple[Include, ...] = ()


@dataclass(frozen=True, slots=True)
class Responses:
    store: Store
    runs: Runs
    host: Host

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/v1/responses/{id}", self.get, "user")
        yield Route("DELETE", "/v1/responses/{id}", self.delete, "user")
        yield Route("POST", "/v1/responses/{id}/cancel", self.cancel, "user")
        yield Route("GET", "/v1/responses/{id}/input_items", self.items, "user")

    async def found(self, request: web.BaseRequest, id: str, *heavy: str) -> StoredAnswer:
        """The caller's response, marked as failed if the process that generated it has died.  heavy: see `Store.get`.

        Raises NotFound.
        """
        owner = self.host.requests.caller(request).name
        kept = await self.store.get(owner, RESPONSE, id, *heavy)
        if id in self.runs.shared.runs or not kept.lost(self.host.clock.time()):
            return kept
        await self.host.clock.sleep(retention.SILENT)
        again = await self.store.get(owner, RESPONSE, id, *heavy)
        if again.beat != kept.beat:
            return again
        await retention.fail(self.store, again)
        return await self.store.get(owner, RESPONSE, id, *heavy)

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, Asked)
        if asked.stream:
            return await self.stream(request, await self.found(request, id, "events"), asked.starting_after)
        if asked.starting_after is not None:
            raise BadCall("'starting_after' requires 'stream' to be true.", param="starting_after")
        return document((await self.found(request, id)).document)

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        kept = await self.found(request, id)
        if kept.running:
            await self.stop(kept)
        await self.store.delete(self.host.requests.caller(request).name, RESPONSE, id)
        return document({"id": id, "object": "response", "deleted": True})

    async def cancel(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """Cancel a response that is running; one that has ended is returned unchanged."""
        kept = await self.found(request, id)
        if not kept.head.get("background"):
            message = "Only a background response can be cancelled; to end any other, close its stream."
            raise BadCall(message, param="id", code="not_in_background")
        if kept.running:
            await self.stop(kept)
            kept = await self.found(request, id)
        return document(kept.document)

    async def stop(self, kept: StoredAnswer) -> None:
        await self.runs.stop(kept.id, Response(kept.head, Moment()).failure(cancelled()), cancelled())

    async def items(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """Everything that the model was given except the instructions, including items of the responses that this one
        continues, if they have not been deleted."""
        page, kept = self.host.requests.query(request, Items), await self.found(request, id, "input")
        owner = self.host.requests.caller(request).name
        async with aclosing(self.given(owner, kept, page.order == "desc")) as given:
            return document(await page_among(given, page))

    async def given(self, owner: str, kept: StoredAnswer, newest: bool) -> AsyncGenerator[Document, None]:
        if newest:
            for item in reversed(kept.input):
                yield item
        if kept.parent:
            async for item in self.store.behind(owner, kept.parent, newest):
                yield item
        if not newest:
            for item in kept.input:
                yield item

    async def stream(self, request: web.BaseRequest, kept: StoredAnswer, after: int | None) -> web.StreamResponse:
        if not kept.events:
            message = "Only the stream of a response made with 'background' and 'stream' can be read again."
            raise BadCall(message, param="stream", code="not_streamed")
        return await self.host.requests.streamed(
            request, self.parts(request, kept, -1 if after is None else after), STREAM
        )

    async def parts(self, request: web.BaseRequest, kept: StoredAnswer, after: int) -> AsyncIterator[bytes]:
        yield b""  # sends the headers at once, although the first event may take a while
        async for part in behind(after, self.every(request, kept)):
            yield part

    async def every(self, request: web.BaseRequest, kept: StoredAnswer) -> AsyncIterator[bytes]:
        run = self.runs.shared.runs.get(kept.id)
        while run is None and kept.running:  # in another process
            yield sse.comment("waiting")
            await asyncio.sleep(LOOK)
            kept = await self.found(request, kept.id, "events")
        if run is None:
            for part in replayed_stream(kept):
                yield part
        else:
            async for part in live_stream(run):
                yield part
