"""Ollama's native API; its calls run through the same chains as OpenAI's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import orjson
from aiohttp import web

from proxy.config import Config
from proxy.edge.body import check_notes, parsed, read_json, read_text, reading
from proxy.edge.body_cache import BodyCache
from proxy.edge.calls import ChainInputs, call_of
from proxy.edge.exchange import exchange_of
from proxy.edge.images import pictured
from proxy.edge.model_lists import Shown
from proxy.edge.writer import Writer, in_time
from proxy.errors import Denied, ProxyError
from proxy.types import JSON, Ask, Chat, Handler, Route
from proxy.upstreams.access import unknown
from proxy.upstreams.catalogue import Catalogue
from proxy.wire import ollama_in, ollama_out, read
from proxy.wire.ollama_in import AskedNatively
from proxy.wire.ollama_out import NativeStyle
from proxy.wire.openai_messages import Limits


@dataclass(frozen=True, slots=True)
class Ollama:
    """own: for each chain, what its plugins declared; see `Own`."""

    config: Config
    send: Handler
    writer: Writer
    catalogue: Catalogue
    own: Mapping[str, ChainInputs]
    limits: Limits
    shown: Shown
    known: BodyCache[tuple[AskedNatively, Chat]] = field(default_factory=BodyCache)

    def routes(self) -> Iterable[Route]:
        """The endpoints; those whose chain is not configured are left out."""
        errors = ollama_out.error_body
        if "chat" in self.config.chains:
            yield Route("POST", "/api/chat", self.chat, "user", errors)
        if "completions" in self.config.chains:
            yield Route("POST", "/api/generate", self.generate, "user", errors)
        if "embeddings" in self.config.chains:
            yield Route("POST", "/api/embed", self.embed, "user", errors)
            yield Route("POST", "/api/embeddings", self.embeddings, "user", errors)
        yield Route("POST", "/api/show", self.show, "user", errors)
        yield Route("GET", "/api/ps", self.ps, "user", errors)
        for method in ("GET", "HEAD"):
            yield Route(method, "/api/tags", self.tags, "user", errors)
            yield Route(method, "/api/version", self.version, "user", errors)
            yield Route(method, "/", self.hello, "public", errors)

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await read_text(request, self.config.requests, any_type=True)
        asked, chat = self.known.get(body) or await self.read(body)
        return await self.answered(request, asked, "chat", chat, not asked.messages)

    async def read(self, body: bytes) -> tuple[AskedNatively, Chat]:
        """Parse and check a body.  Raises BadCall, which names the field."""
        read = await reading(body, partial(self.checked, body))
        if not pictured(read[1]):
            self.known.put(body, read)
        return read

    def checked(self, body: bytes) -> tuple[AskedNatively, Chat]:
        given = parsed(body, self.config.requests)
        asked = ollama_in.read_native(given, ollama_in.CHAT, self.limits, self.own["chat"].fields)
        return asked, asked.chat()

    async def generate(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await self.body(request)
        asked = ollama_in.read_native(body, ollama_in.GENERATE, self.limits, self.own["completions"].fields)
        return await self.answered(request, asked, "completions", asked.complete(), not asked.prompt)

    async def body(self, request: web.BaseRequest) -> JSON:
        """The JSON body with any content type: Ollama ignores it, and the examples in its documentation omit it."""
        return await read_json(request, self.config.requests, any_type=True)

    async def answered(
        self, request: web.BaseRequest, asked: AskedNatively, route: str, ask: Ask, empty: bool
    ) -> web.StreamResponse:
        """empty: whether there is no prompt, so that the request only loads the model and is not streamed."""
        check_notes(asked.notes, self.config.params)
        if empty and asked.unload:
            raise Denied("The operator sets how long a model stays loaded, under `models:` in the configuration.")
        call = call_of(request, route, asked, ask, asked.stream and not empty, self.own[route])
        style = NativeStyle(asked.model, "chat" if route == "chat" else "generate")
        exchange_of(request).spelled = ollama_in.spelled
        try:
            return await self.writer.answer(request, call, style, asked.notes)
        except ProxyError as error:
            error.renamed(ollama_in.spelled(error.param))
            raise

    async def embed(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.embedded(request, legacy=False)

    async def embeddings(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.embedded(request, legacy=True)

    async def embedded(self, request: web.BaseRequest, legacy: bool) -> web.StreamResponse:
        started, exchange = time.perf_counter_ns(), exchange_of(request)
        body = await self.body(request)
        rows = ollama_in.EMBEDDINGS if legacy else ollama_in.EMBED
        asked = ollama_in.read_native(body, rows, self.limits, self.own["embeddings"].fields)
        check_notes(asked.notes, self.config.params)
        exchange.model, exchange.route = asked.model, "embeddings"
        call = call_of(request, "embeddings", asked, asked.embed(), False, self.own["embeddings"])
        answer = await in_time(self.send, call, exchange)
        written = ollama_out.write_embed(asked.model, answer, started, legacy)
        return web.Response(body=written, headers=exchange.telling(asked.notes))

    async def tags(self, request: web.BaseRequest) -> web.StreamResponse:
        """Models of all upstreams, including aliases and those that plugins offer."""
        listed = await self.shown.to(exchange_of(request).caller)
        entries = [{**one.told, "name": one.name, "model": one.name} for one in listed]
        return document({"models": entries})

    async def show(self, request: web.BaseRequest) -> web.StreamResponse:
        body = read.mapping(await self.body(request), "the body")
        name = read.model(body.get("model") or read.needed(body, "name", "model"), "model")
        verbose = read.flag(body.get("verbose") or False, "verbose")
        caller = exchange_of(request).caller
        patterns = caller.models
        if (behind := await self.shown.behind(name, caller)) is not None:
            name = behind.name
        if not self.catalogue.permits(patterns, name):
            raise unknown(name)
        upstream, info = await self.catalogue.locate(name, None, patterns)
        asked = {"model": info.name, "verbose": verbose}
        told = await self.catalogue.servers[upstream].show(asked)
        return web.Response(body=told, content_type="application/json")

    async def ps(self, request: web.BaseRequest) -> web.StreamResponse:
        return document({"models": await self.catalogue.running(exchange_of(request).caller.models)})

    async def version(self, request: web.BaseRequest) -> web.StreamResponse:
        return document({"version": await self.catalogue.version()})

    async def hello(self, request: web.BaseRequest) -> web.StreamResponse:
        """Ollama's exact text, because many clients compare it to detect a server."""
        return web.Response(text="Ollama is running")


def document(value: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")
