"""OpenAI's endpoints for the files of vector stores, singly and in batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import orjson
from aiohttp import web

from plugins.documents.payer import Payer
from plugins.documents.tables import ITEMS
from plugins.documents.vectorstores import shapes
from plugins.documents.vectorstores.adding import New
from plugins.documents.vectorstores.contents import Contents, Entry, of_batch
from plugins.documents.vectorstores.forms import AddFile, AddFiles, ChangeFile, FilePage
from plugins.documents.vectorstores.origins import no_file
from plugins.documents.vectorstores.paging import PageBounds, listed
from plugins.documents.vectorstores.searching import alive
from plugins.documents.vectorstores.stores import VectorStore, fits
from proxy.host import Host
from proxy.types import Route


@dataclass(frozen=True, slots=True)
class Files:
    """size: default characters of a chunk."""

    contents: Contents
    host: Host
    size: int

    def routes(self) -> Iterable[Route]:
        files, batches = "/v1/vector_stores/{id}/files", "/v1/vector_stores/{id}/file_batches"
        yield Route("POST", files, self.add, "user")
        yield Route("GET", files, self.list, "user")
        yield Route("GET", files + "/{file}", self.get, "user")
        yield Route("POST", files + "/{file}", self.change, "user")
        yield Route("DELETE", files + "/{file}", self.delete, "user")
        yield Route("GET", files + "/{file}/content", self.content, "user")
        yield Route("POST", batches, self.add_several, "user")
        yield Route("GET", batches + "/{batch}", self.batch, "user")
        yield Route("POST", batches + "/{batch}/cancel", self.cancel, "user")
        yield Route("GET", batches + "/{batch}/files", self.of_batch, "user")

    # --- adding, also used when a store is created ---

    async def known(self, caller: str, files: Sequence[AddFile], at: str) -> list[New]:
        """The files to be added.  Raises NotFound for one that is not the caller's.

        at: the field that lists them, "" for `file_id`.
        """
        there = await self.contents.origins.file_store.find(caller, [one.file_id for one in files])
        new: dict[str, New] = {}
        for index, one in enumerate(files):
            if one.file_id not in there:
                raise no_file(one.file_id, f"{at}[{index}]" if at else "file_id")
            size, overlap = (0, 0) if one.chunking_strategy is None else one.chunking_strategy.letters
            new[one.file_id] = New(there[one.file_id], one.attributes, size, overlap)
        return list(new.values())

    async def put(self, payer: Payer, store: VectorStore, new: Sequence[New], batch: bool = False) -> str:
        id = await self.contents.adding.add(payer, store.id, new, batch)
        await self.contents.stores.used([store])
        self.contents.runner.nudge()
        return id

    def caller(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    def payer(self, request: web.BaseRequest) -> Payer:
        caller = self.host.requests.caller(request)
        return Payer(caller.name, caller.key)

    async def own(self, request: web.BaseRequest, id: str) -> VectorStore:
        one = await self.contents.stores.own(self.caller(request), id)
        alive(one)
        return one

    # --- singly ---

    def answer(self, one: Entry, store: VectorStore) -> web.StreamResponse:
        return shapes.answer(shapes.file(one, store, self.size), one.status == "in_progress")

    async def add(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form = await self.host.requests.form(request, AddFile)
        store = await self.own(request, id)
        new = await self.known(self.caller(request), [form], "")
        await self.put(self.payer(request), store, new)
        return self.answer(await self.contents.one(store.id, form.file_id), store)

    async def found(self, request: web.BaseRequest, id: str, file: str) -> tuple[VectorStore, Entry]:
        store = await self.contents.stores.one(self.caller(request), id)
        return store, await self.contents.one(store.id, file)

    async def get(self, request: web.BaseRequest, id: str, file: str) -> web.StreamResponse:
        store, one = await self.found(request, id, file)
        return self.answer(one, store)

    async def change(self, request: web.BaseRequest, id: str, file: str) -> web.StreamResponse:
        form = await self.host.requests.form(request, ChangeFile)
        store = await self.own(request, id)
        one = await self.contents.one(store.id, file)
        await self.contents.store.change(one.item, {}, form.attributes or {})
        return self.answer(await self.contents.one(store.id, file), store)

    async def delete(self, request: web.BaseRequest, id: str, file: str) -> web.StreamResponse:
        """Remove a file from the vector store; the file itself is not deleted."""
        store = await self.contents.stores.own(self.caller(request), id)
        one = await self.contents.one(store.id, file)
        await self.contents.runner.remove(one.item)
        return shapes.answer({"id": one.id, "object": "vector_store.file.deleted", "deleted": True})

    async def content(self, request: web.BaseRequest, id: str, file: str) -> web.StreamResponse:
        """The text of a file, sent part by part, with one of them in memory at a time."""
        _, one = await self.found(request, id, file)
        text = self.contents.store.text(one.item.id, one.item.version or one.item.newest)
        return await self.host.requests.streamed(request, page_of(text), {"Content-Type": "application/json"})

    async def list(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        store = await self.contents.stores.one(self.caller(request), id)
        return await self.page(request, store, batch="")

    async def page(self, request: web.BaseRequest, store: VectorStore, batch: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, FilePage)
        where = ITEMS.c.collection == store.id
        if batch:
            where &= ITEMS.c.id.in_(of_batch(batch))
        if asked.filter is not None:
            where &= fits(asked.filter)
        ends = {}
        for name in ("after", "before"):
            if (file := getattr(asked, name)) is not None:
                item = (await self.contents.one(store.id, file, name)).item
                ends[name] = (item.at, item.id)
        entries, more = await self.contents.page(where, PageBounds(asked.limit, asked.order == "asc", **ends))
        return shapes.answer(listed([shapes.file(one, store, self.size) for one in entries], more))

    # --- in batches ---

    async def add_several(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form = await self.host.requests.form(request, AddFiles)
        store = await self.own(request, id)
        new = await self.known(self.caller(request), form.each(), "files" if form.files else "file_ids")
        return await self.batch_answer(store, await self.put(self.payer(request), store, new, batch=True))

    async def batch_answer(self, store: VectorStore, id: str) -> web.StreamResponse:
        batch = await self.contents.batch(store.id, id)
        document = shapes.batch(batch, await self.contents.counts(batch))
        return shapes.answer(document, document["status"] == "in_progress")

    async def batch(self, request: web.BaseRequest, id: str, batch: str) -> web.StreamResponse:
        return await self.batch_answer(await self.contents.stores.one(self.caller(request), id), batch)

    async def cancel(self, request: web.BaseRequest, id: str, batch: str) -> web.StreamResponse:
        """Cancel a batch: files already done stay, and a batch that has ended does not change."""
        store = await self.contents.stores.own(self.caller(request), id)
        one = await self.contents.batch(store.id, batch)
        if (await self.contents.counts(one)).get("in_progress"):
            await self.contents.cancel(one)
        return await self.batch_answer(store, batch)

    async def of_batch(self, request: web.BaseRequest, id: str, batch: str) -> web.StreamResponse:
        store = await self.contents.stores.one(self.caller(request), id)
        one = await self.contents.batch(store.id, batch)
        return await self.page(request, store, one.id)


async def page_of(parts: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """The JSON of a page with all parts; there is only one page."""
    before = b'{"object":"vector_store.file_content.page","data":['
    async for part in parts:
        yield before + orjson.dumps({"type": "text", "text": part})
        before = b","
    end = b'],"has_more":false,"next_page":null}'
    yield end if before == b"," else before + end
