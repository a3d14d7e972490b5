"""The endpoints of documents and of the jobs that index them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import orjson
from aiohttp import web

from plugins.documents import shapes, upload
from plugins.documents.collections import USUAL, Collection, Collections
from plugins.documents.contents import Content
from plugins.documents.files import FileConverter
from plugins.documents.forms import AddDocument, ChangeDocument, Page, Some
from plugins.documents.job_queue import OPEN, Job
from plugins.documents.payer import Payer
from plugins.documents.runner import Runner
from plugins.documents.scratch import scratch
from plugins.documents.store import Item, New, NewVersion, Store
from plugins.documents.tables import ITEMS
from proxy.errors import BadCall, Busy, Denied, NotFound, ProxyError
from proxy.host import Host, interruptible_sleep
from proxy.stores.vectors import Vectors
from proxy.types import Route

LOOK: Final = 0.25
"""Seconds between two polls of a job that another process may be running."""
BEAT: Final = 10.0
"""Seconds after which a stream of progress events sends a keep-alive comment."""
STREAM: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Documents:
    """most_bytes: maximum size of a file."""

    def __init__(
        self,
        store: Store,
        collections: Collections,
        runner: Runner,
        index: Vectors,
        reader: FileConverter,
        most_bytes: int,
    ) -> None:
        self.store = store
        self.collections = collections
        self.runner = runner
        self.index = index
        self.reader = reader
        self.most_bytes = most_bytes

    @property
    def host(self) -> Host:
        return self.runner.host

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/rag/documents", self.add, "user")
        yield Route("GET", "/api/rag/documents", self.list, "user")
        yield Route("GET", "/api/rag/documents/{id}", self.get, "user")
        yield Route("GET", "/api/rag/documents/{id}/content", self.content, "user")
        yield Route("PUT", "/api/rag/documents/{id}", self.put, "user")
        yield Route("DELETE", "/api/rag/documents/{id}", self.delete, "user")
        yield Route("GET", "/api/rag/jobs", self.jobs, "user")
        yield Route("GET", "/api/rag/jobs/{id}", self.job, "user")
        yield Route("DELETE", "/api/rag/jobs/{id}", self.cancel, "user")

    def caller(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    def payer(self, request: web.BaseRequest) -> Payer:
        caller = self.host.requests.caller(request)
        return Payer(caller.name, caller.key)

    async def add(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.content_type == upload.FORM:
            return await self.add_file(request)
        form, payer = await self.host.requests.form(request, AddDocument), self.payer(request)
        collection = await self.collection(payer, form.collection)
        new = New(form.title, await self.text(form.content), form.source, form.metadata)
        return await self.taken(payer, collection, new, form.wait)

    async def add_file(self, request: web.BaseRequest) -> web.StreamResponse:
        async with scratch() as file:
            form = await upload.received(self.host.requests.parts(request), file, self.most_bytes)
            told, payer = form.checked_fields(), self.payer(request)
            collection = await self.collection(payer, told.collection)
            async with self.reader.content(file, form.name) as content:
                new = New(told.title, content, told.source, told.metadata)
                return await self.taken(payer, collection, new, told.wait)

    async def collection(self, payer: Payer, named: str | None) -> Collection:
        """The payer's own collection, to add to.  Raises NotFound, Denied.

        A missing model is a NotFound, too.  The default collection is then not created, because it would keep that
        model.
        """
        found = await self.collections.find(payer.name, named or USUAL)
        if found is not None or named in (None, USUAL):
            await self.embeddable(payer, self.collections.model if found is None else found.model)
        return await self.collections.own(payer.name, named)

    async def embeddable(self, payer: Payer, model: str) -> None:
        """Raises NotFound if no upstream has the model, since indexing could only fail.

        If that cannot be checked now, such as while an upstream is unavailable, the job will find out.
        """
        try:
            if await self.host.models.stamp(model) is None:  # the chain may still be able to provide it
                await self.runner.ingest.embedder.vectors([model], model, payer)
        except NotFound as error:
            message = f"Nothing can be added to this collection, whose texts '{model}' is to embed: {error}"
            raise NotFound(message, param="collection", code=error.code) from error
        except ProxyError:
            return

    async def taken(self, payer: Payer, collection: Collection, new: New, wait: float) -> web.StreamResponse:
        """Add a document; answers 201 if it is new, 200 if it existed already, 202 while it is not searchable yet."""
        item, is_new = await self.store.add(payer, collection.id, new)
        self.runner.nudge()
        item = await self.waited(item, wait)
        job = await self.runner.job_queue.of_item(item.id)
        status = 202 if item.status == "pending" else 201 if is_new else 200
        return shapes.answer({**shapes.item(item, job), "duplicate": not is_new}, status)

    async def text(self, given: str) -> Content:
        content = await Content.of(given)
        if content.characters > self.reader.most:
            message = f"Invalid 'content': a document has up to {self.reader.most} characters."
            raise BadCall(message, param="content", code="document_too_long")
        return content

    async def waited(self, item: Item, seconds: float) -> Item:
        """The document when its newest version is ready or has failed, or after so many seconds."""
        now = asyncio.get_running_loop().time
        until = now() + seconds
        while item.status == "pending" and (left := until - now()) > 0:
            await interruptible_sleep(min(left, LOOK), self.runner.job_queue.changed)
            item = await self.store.item(item.id) or item._replace(status="failed", error="removed")
        return item

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        page, caller = self.host.requests.query(request, Page), self.caller(request)
        where = ITEMS.c.owner == caller
        if page.collection is not None:
            where = ITEMS.c.collection == (await self.collections.one(caller, page.collection)).id
        if page.status is not None:
            where &= ITEMS.c.status == page.status
        after = None if page.after is None else await self.readable(caller, page.after, "after")
        found = await self.store.page(where, after, page.limit + 1)
        some = found[: page.limit]
        told = {"data": [shapes.item(one) for one in some], "has_more": len(found) > page.limit}
        return shapes.answer({"object": "list", **told, "last_id": some[-1].id if some else None})

    async def readable(self, caller: str, id: str, param: str = "id") -> Item:
        if (item := await self.store.one(caller, id)) is None:
            message = f"No document that you may read has the id '{id[:100]}'."
            raise NotFound(message, param=param, code="document_not_found")
        return item

    async def own(self, caller: str, id: str) -> Item:
        item = await self.readable(caller, id)
        if item.owner != caller:
            raise Denied("This document is shared with you for reading only.", code="read_only")
        return item

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        item = await self.readable(self.caller(request), id)
        return shapes.answer(shapes.item(item, await self.runner.job_queue.of_item(item.id)))

    async def content(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """The text of the searchable version, or of the newest if none is searchable yet."""
        item = await self.readable(self.caller(request), id)
        parts = self.store.text(item.id, item.version or item.newest)
        pieces = (part.encode() async for part in parts)
        return await self.host.requests.streamed(request, pieces, {"Content-Type": "text/plain; charset=utf-8"})

    async def put(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, payer = await self.host.requests.form(request, ChangeDocument), self.payer(request)
        item = await self.own(payer.name, id)
        said = {"title": form.title, "source": form.source}
        told: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        content = None if form.content is None else await self.text(form.content)
        other_text = content is not None and content.digest != item.digest
        again = content is not None and item.status == "failed"
        renews = other_text or again or form.title not in (None, item.title)
        renewal = NewVersion(content if other_text else None, payer.key) if renews else None
        if told or form.metadata is not None or renews:
            await self.store.change(item, told, form.metadata, renewal)
            self.runner.nudge()
        item = await self.waited(await self.own(payer.name, id), form.wait)
        job = await self.runner.job_queue.of_item(item.id)
        return shapes.answer(shapes.item(item, job), 202 if item.status == "pending" else 200)

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        item = await self.own(self.caller(request), id)
        await self.runner.remove(item)
        return shapes.answer({"document_id": item.id, "deleted": True})

    async def jobs(self, request: web.BaseRequest) -> web.StreamResponse:
        some = self.host.requests.query(request, Some)
        found = await self.runner.job_queue.latest(self.caller(request), some.limit)
        return shapes.answer({"object": "list", "data": [shapes.job(one) for one in found]})

    async def one_job(self, request: web.BaseRequest, id: str) -> Job:
        if (job := await self.runner.job_queue.one(self.caller(request), id)) is None:
            raise NotFound(f"No job of yours has the id '{id[:100]}'.", param="id", code="job_not_found")
        return job

    async def job(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """A job as JSON, or as server-sent events until it ends if the client accepts them."""
        job = await self.one_job(request, id)
        if "text/event-stream" not in request.headers.get("Accept", ""):
            return shapes.answer(shapes.job(job))
        return await self.host.requests.streamed(request, self.job_events(job), STREAM)

    async def job_events(self, job: Job) -> AsyncIterator[bytes]:
        last, quiet = b"", 0.0
        while True:
            event = b"data: " + orjson.dumps(shapes.job(job)) + b"\n\n"
            if event != last or quiet >= BEAT:
                yield event if event != last else b": waiting\n\n"
                last, quiet = event, 0.0
            if job.status not in OPEN:
                return
            await interruptible_sleep(LOOK, self.runner.job_queue.changed)
            quiet += LOOK
            try:
                job = await self.runner.job_queue.one(job.owner, job.id) or job._replace(status="cancelled")
            except Busy:
                continue

    async def cancel(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        job = await self.one_job(request, id)
        if not await self.runner.job_queue.cancel(job):
            raise BadCall(f"The job has ended already: {job.status}.", param="id", code="job_ended")
        self.runner.stop(job.id)
        return shapes.answer({"job_id": job.id, "status": "cancelled"})
