"""The endpoints of collections, searches and statistics."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from plugins.documents import shapes
from plugins.documents.collections import Collection, Collections, Sharing
from plugins.documents.forms import Asked, ChangeCollection, Generate, MakeCollection, Shared
from plugins.documents.payer import Payer
from plugins.documents.runner import Runner
from plugins.documents.search import Outcome, Search, SearchRequest
from proxy.errors import BadCall, Denied, NotFound, ProxyError
from proxy.host import Host
from proxy.stores.vectors import Vectors, VectorsAway
from proxy.streams import collect
from proxy.types import JSON, Route

MOST: Final = 1000
"""Maximum number of collections in a list."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The endpoints of collections."""

    collections: Collections
    index: Vectors
    runner: Runner

    @property
    def host(self) -> Host:
        return self.runner.host

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/rag/collections", self.make, "user")
        yield Route("GET", "/api/rag/collections", self.list, "user")
        yield Route("GET", "/api/rag/collections/{id}", self.get, "user")
        yield Route("PUT", "/api/rag/collections/{id}", self.put, "user")
        yield Route("DELETE", "/api/rag/collections/{id}", self.delete, "user")

    async def as_json(self, caller: str, *several: Collection) -> list[Any]:
        readers = await self.collections.readers(one.id for one in several if one.owner == caller)
        return [shapes.collection(one, caller, readers) for one in several]

    async def make(self, request: web.BaseRequest) -> web.StreamResponse:
        form, caller = await self.host.requests.form(request, MakeCollection), self.host.requests.caller(request).name
        one = await self.collections.make(caller, form.name, form.description, form.embed, sharing(form.shared))
        return shapes.answer((await self.as_json(caller, one))[0], 201)

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        caller = self.host.requests.caller(request).name
        found = await self.collections.all(caller, MOST)
        return shapes.answer({"object": "list", "data": await self.as_json(caller, *found)})

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        caller = self.host.requests.caller(request).name
        return shapes.answer((await self.as_json(caller, await self.collections.one(caller, id, "id")))[0])

    async def own(self, caller: str, id: str) -> Collection:
        one = await self.collections.one(caller, id, "id")
        if one.owner != caller:
            raise Denied("This collection is shared with you for reading only.", code="read_only")
        return one

    async def put(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, caller = await self.host.requests.form(request, ChangeCollection), self.host.requests.caller(request)
        one = await self.own(caller.name, id)
        said = {"name": form.name, "about": form.description}
        told = {name: value for name, value in said.items() if value is not None}
        await self.collections.change(one, told, None if form.shared is None else sharing(form.shared))
        moves = form.embed is not None and await self.runner.mover.moves.begin(one, form.embed, caller.key)
        if form.embed is not None:
            self.runner.nudge()
        told_of = await self.as_json(caller.name, await self.own(caller.name, one.id))
        return shapes.answer(told_of[0], 202 if moves else 200)

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        one = await self.own(self.host.requests.caller(request).name, id)
        await self.collections.remove(one)
        with suppress(VectorsAway):  # then the sweep drops it later
            await self.index.drop(one.place)
        return shapes.answer({"id": one.id, "deleted": True})


def sharing(form: Shared) -> Sharing:
    return Sharing(form.everyone, form.readers)


@dataclass(frozen=True, slots=True)
class Searches:
    search: Search
    host: Host

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/rag/search", self.find, "user")
        yield Route("POST", "/api/rag/generate", self.generate, "user")
        yield Route("GET", "/api/rag/stats", self.stats, "user")

    async def find(self, request: web.BaseRequest) -> web.StreamResponse:
        form, caller = await self.host.requests.form(request, Asked), self.host.requests.caller(request)
        if not form.query.strip():
            raise BadCall("Invalid 'query': it is empty.", param="query", code="empty_string")
        if form.rerank and self.search.reranker.model is None:
            message = "Invalid 'rerank': no model is configured for it."
            raise BadCall(message, param="rerank", code="invalid_value")
        given = (form.collections, form.filter, form.merge, form.words, form.fusion, form.rerank is not False)
        payer = Payer(caller.name, caller.key)
        outcome = await self.search.run(SearchRequest(payer, form.query, form.top_k, *given, form.closer))
        results = [shapes.hit(one, outcome) for one in outcome.hits]
        told: dict[str, Any] = {"object": "list", "query": form.query, "results": results}
        if outcome.partial:
            told["partial"] = True
        if form.explain:
            self.explain(told, outcome)
        return shapes.answer(told)

    def explain(self, told: dict[str, Any], outcome: Outcome) -> None:
        for one, result in zip(outcome.hits, told["results"], strict=True):
            result["explain"] = shapes.explained(one)
        told["fusion"] = outcome.fusion
        if outcome.unread:
            told["rerank_failed"] = outcome.unread
        told["dropped"] = [
            {"document_id": one.row.document, "position": one.row.position, **shapes.explained(one), "reason": reason}
            for one, reason in outcome.dropped
        ]

    async def generate(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer from documents, through the chat chain, in which this plugin adds the passages."""
        form, caller = await self.host.requests.form(request, Generate), self.host.requests.caller(request)
        try:
            call = await self.host.chat(request, chat_of(form))
            if "rag" not in call.extra:  # the field remains only if a plugin of the chain declares it
                raise NotFound("The plugin `documents` is not in the chain 'chat'.", code="route_off")
            if form.stream:
                return await self.host.answer(request, call)
            self.host.admit(call, caller)
            reply = await self.host.send(call)
        except ProxyError as error:
            error.renamed(error.param and error.param.removeprefix("rag."))
            raise
        facts = reply.facts
        answer = await collect(reply)
        usage = answer.usage
        told = {
            "response": answer.choice(0).text,
            "model": facts.get("model", form.model),
            "sources": [] if (told_of := answer.choice(0).sources) is None else told_of.passages,
            "rag": facts["rag"],
            "usage": {
                "prompt_tokens": usage.prompt_tokens if usage else None,
                "completion_tokens": usage.completion_tokens if usage else None,
            },
        }
        return shapes.answer(told)

    async def stats(self, request: web.BaseRequest) -> web.StreamResponse:
        caller = self.host.requests.caller(request).name
        names = {one.id: one for one in await self.search.collections.all(caller, MOST)}
        found: dict[str, dict[str, Any]] = {
            id: {"id": id, "name": one.name, "owner": one.owner, "documents": 0, "chunks": 0, "characters": 0}
            | {"pending": 0, "ready": 0, "failed": 0, "embed": one.model, "dimensions": one.dimensions or None}
            for id, one in names.items()
        }
        for row in await self.search.store.statistics(caller):
            if (one := found.get(row.collection)) is not None:
                one[row.status] += row.documents
                for name in ("documents", "chunks", "characters"):
                    one[name] += int(getattr(row, name) or 0)
        several = list(found.values())
        sums = {name: sum(one[name] for one in several) for name in ("documents", "chunks", "characters")}
        return shapes.answer({**sums, "collections": several})


def chat_of(form: Generate) -> dict[str, JSON]:
    """The body of the chat request."""
    messages = [{"role": "system", "content": form.system}] if form.system else []
    wanted = {"collections": list(form.collections), "filter": form.filter, "top": form.top_k}
    rag = {name: value for name, value in wanted.items() if value not in (None, [])}
    said = {"temperature": form.temperature, "max_tokens": form.max_tokens, "seed": form.seed}
    asked = [*messages, {"role": "user", "content": form.query}]
    return {"model": form.model, "messages": asked, "stream": form.stream, "rag": rag, **said}
