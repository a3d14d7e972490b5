"""OpenAI's endpoints for vector stores.  Source: OpenAI's API reference, "Vector stores"."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from plugins.documents.payer import Payer
from plugins.documents.rewriting import Rewriter
from plugins.documents.runner import Runner
from plugins.documents.search import Search
from plugins.documents.vectorstores import shapes
from plugins.documents.vectorstores.adding import Adding
from plugins.documents.vectorstores.contents import Contents
from plugins.documents.vectorstores.expiring import Expiring
from plugins.documents.vectorstores.files import Files
from plugins.documents.vectorstores.forms import AddFile, Asked, ChangeStore, Expiry, MakeStore, Page
from plugins.documents.vectorstores.paging import PageBounds, listed
from plugins.documents.vectorstores.searching import Searching, StoreSearchRequest, checked
from plugins.documents.vectorstores.stores import Stores, VectorStore, dumped
from proxy.errors import BadCall, ProxyError
from proxy.host import Host
from proxy.stores.vectors import VectorsAway
from proxy.types import Route


@dataclass(frozen=True, slots=True)
class VectorStores:
    """The endpoints of vector stores and their search, with those of their files."""

    contents: Contents
    searching: Searching
    files: Files
    expiring: Expiring
    rewriter: Rewriter
    host: Host

    @classmethod
    def of(cls, runner: Runner, search: Search, rewriter: Rewriter, size: int, floor: float) -> VectorStores:
        """size: default characters of a chunk.  floor: the text score from which a passage is considered a match."""
        ingest, host = runner.ingest, runner.host
        stores = Stores(search.collections)
        contents = Contents(stores, search.store, ingest.origins, Adding(search.store), runner)
        host.files.removal_hooks.append(contents.file_goes)
        files = Files(contents, host, size)
        return cls(contents, Searching(search, contents, floor), files, Expiring(stores, runner), rewriter, host)

    @property
    def stores(self) -> Stores:
        return self.contents.stores

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/v1/vector_stores", self.make, "user")
        yield Route("GET", "/v1/vector_stores", self.list, "user")
        yield Route("GET", "/v1/vector_stores/{id}", self.get, "user")
        yield Route("POST", "/v1/vector_stores/{id}", self.change, "user")
        yield Route("DELETE", "/v1/vector_stores/{id}", self.delete, "user")
        yield Route("POST", "/v1/vector_stores/{id}/search", self.search, "user")
        yield from self.files.routes()

    def caller(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def answer(self, one: VectorStore) -> web.StreamResponse:
        counts = (await self.stores.counts([one])).get(one.id, shapes.UNKNOWN)
        document = shapes.store(one, counts)
        return shapes.answer(document, document["status"] == "in_progress")

    async def make(self, request: web.BaseRequest) -> web.StreamResponse:
        form, payer = await self.host.requests.form(request, MakeStore), self.files.payer(request)
        files = [AddFile(file_id=one, chunking_strategy=form.chunking_strategy) for one in form.file_ids]
        new = await self.files.known(payer.name, files, "file_ids") if files else []
        days = days_of(form.expires_after)
        one = await self.stores.make(payer.name, form.name, form.description, form.metadata, days)
        if new:
            try:
                await self.files.put(payer, one, new)
            except ProxyError:  # the client will retry, and does not know the new store's id
                await self.remove(one.id)
                raise
        return await self.answer(one)

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        page, caller = self.host.requests.query(request, Page), self.caller(request)
        ends = {}
        for name in ("after", "before"):
            if (id := getattr(page, name)) is not None:
                one = await self.stores.one(caller, id, name)
                ends[name] = (one.at, one.id)
        several, more = await self.stores.page(caller, PageBounds(page.limit, page.order == "asc", **ends))
        counts = await self.stores.counts(several)
        return shapes.answer(listed([shapes.store(one, counts[one.id]) for one in several], more))

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return await self.answer(await self.stores.one(self.caller(request), id))

    async def change(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, caller = await self.host.requests.form(request, ChangeStore), self.caller(request)
        one = await self.stores.own(caller, id)
        beside: dict[str, object] = {}
        if "expires_after" in form.model_fields_set:
            if one.expired:
                raise BadCall("It has expired.", param="expires_after", code="vector_store_expired")
            beside["days"] = days_of(form.expires_after)
        if "metadata" in form.model_fields_set:
            beside["metadata"] = dumped(form.metadata)
        await self.stores.change(one, form.name, beside)
        return await self.answer(await self.stores.own(caller, id))

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        one = await self.stores.own(self.caller(request), id)
        await self.remove(one.id)
        return shapes.answer({"id": one.id, "object": "vector_store.deleted", "deleted": True})

    async def remove(self, id: str) -> None:
        collections, index = self.stores.collections, self.contents.runner.ingest.index
        if (collection := await collections.by_id(id)) is not None:
            await collections.remove(collection)
            with suppress(VectorsAway):  # then the sweep drops it later
                await index.drop(collection.place)

    async def search(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, caller = await self.host.requests.form(request, Asked), self.host.requests.caller(request)
        if blank := [index for index, one in enumerate(form.query) if not one.strip()]:
            param = f"query[{blank[0]}]"
            raise BadCall(f"Invalid '{param}': it is empty.", param=param, code="empty_string")
        filters = checked(form.filters, "filters")
        stores = await self.searching.stores(caller.name, [id], "vector_store_id")
        queries = list(form.query)
        if form.rewrite_query:
            queries = [await self.rewriter.alone(caller, one) for one in queries]
        payer = Payer(caller.name, caller.key)
        wanted = StoreSearchRequest(payer, stores, queries, form.max_num_results, filters, form.ranking_options)
        found = await self.searching.run(wanted)
        data = [shapes.result(one) for one in found]
        told = {"search_query": queries, "data": data, "has_more": False, "next_page": None}
        return shapes.answer({"object": "vector_store.search_results.page", **told})


def days_of(expiry: Expiry | None) -> int | None:
    return None if expiry is None else expiry.days
