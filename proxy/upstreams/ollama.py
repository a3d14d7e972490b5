"""One Ollama server as a handler: sends a Call to Ollama's native API, and translates the answer into Events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

from msgspec import Struct

from proxy.config import Upstream
from proxy.errors import BadCall, UpstreamError
from proxy.host import Services
from proxy.models import ModelInfo
from proxy.streams import begun, replay, whole
from proxy.types import JSON, Call, Chat, Complete, Embed, Events, Finish, Reply, Stage, Usage, Vectors
from proxy.upstreams import repair
from proxy.upstreams.common import in_batches, is_empty, notes_text, planned, strict_refusal
from proxy.upstreams.host_client import HostClient, HostKind
from proxy.upstreams.http1 import Connection, Origin
from proxy.upstreams.model_list import ModelList
from proxy.upstreams.model_loader import ModelLoader
from proxy.wire import ollama_chat, ollama_errors, ollama_generate, ollama_lines, ollama_models
from proxy.wire.ollama_chat import Pins, Plan
from proxy.wire.ollama_generate import GenerateReader
from proxy.wire.ollama_lines import ChatReader

KIND = HostKind("Ollama", "an `ollama` URL has no path such as /v1, and leads to an Ollama")


class Exchange(Struct, frozen=True):
    """How one answer is obtained: the path, the planned request, and the reader of the answer."""

    path: str
    plan: Plan
    reader: ChatReader


class Ollama:
    """pins: gives what the operator fixed for a model.  strict: refuse parameters that would be emulated or dropped."""

    def __init__(
        self,
        url: str,
        settings: Upstream,
        services: Services,
        pins: Callable[[str], Pins],
        strict: bool = False,
    ) -> None:
        self.url = url
        self.settings = settings
        self.pins = pins
        self.strict = strict
        origin = services.process_state(f"origin {url}", lambda: origin_of(url, services))
        self.http = HostClient(
            origin, services.worker_info.server, settings.max_answer_bytes, KIND, ollama_errors.error_of
        )
        # The cached lists and the loads under way survive reloads.
        self.model_list = services.process_state(
            f"model list {url}", lambda: ModelList(self.http, services.background, services.clock)
        )
        self.loader = services.process_state(
            f"loader {url}",
            lambda: ModelLoader(self.http, services.background, services.clock, settings.load_timeout),
        )

    def open(self) -> None:
        self.model_list.client = self.loader.client = self.http
        self.loader.load_timeout = self.settings.load_timeout

    def is_allowed(self, info: ModelInfo | None) -> bool:
        """Whether callers may use this model: one that Ollama forwards elsewhere only if the operator allows it."""
        return info is not None and (self.settings.allow_cloud or not ollama_models.is_remote(info))

    async def models(self) -> Mapping[str, ModelInfo]:
        return {name: info for name, info in (await self.model_list.all()).items() if self.is_allowed(info)}

    async def running(self) -> list[JSON]:
        """The entries of `/api/ps`: the models that it has loaded."""
        return list(ollama_models.loaded_entries(await self.http.fetch_soon("/api/ps")))

    async def show(self, body: Mapping[str, JSON]) -> bytes:
        """The unchanged answer of `/api/show` for one model."""
        return await self.http.fetch_soon("/api/show", body, str(body.get("model", "")))

    async def version(self) -> str:
        """Raises UpstreamError if the server does not answer."""
        return ollama_models.read_version(await self.http.fetch_soon("/api/version"))

    async def find(self, name: str) -> ModelInfo | None:
        found = await self.model_list.find(name)
        return found if self.is_allowed(found) else None

    def known(self, name: str) -> ModelInfo | None:
        found = self.model_list.known.get(name)
        return found if self.is_allowed(found) else None

    def warm(self, name: str) -> bool:
        return name in self.loader.loaded or name in self.loader.loads

    def loaded(self) -> Collection[str]:
        return self.loader.loaded

    def window(self, name: str) -> int | None:
        return self.loader.loaded.get(name)

    def mark_outdated(self) -> None:
        self.model_list.refreshed_at = self.loader.refreshed_at = float("-inf")

    async def poll(self) -> None:
        await asyncio.shield(self.loader.start_refresh())
        if self.model_list.is_old:
            await asyncio.shield(self.model_list.start_refresh())

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]:
        if isinstance(call.ask, Embed):
            return self.embed(call, call.ask, info)
        return self.generate(call, call.ask, info)

    async def generate(self, call: Call, ask: Chat | Complete, info: ModelInfo) -> Reply:
        """Answer a chat or completion: load the model, send the request, and repair what Ollama cannot do by itself."""
        pins = self.pins(info.name)
        # Before the request is sent, since an invalid schema must not cost tokens.
        exchange, stages = await planned(ask, partial(self.plan_exchange, call, ask, info, pins))
        plan = exchange.plan
        if not self.loader.is_warm(info.name):
            await self.loader.ensure_loaded(info, pins, call.progress)
        if is_empty(ask):  # the call only loads the model
            return Reply.of(replay([Finish("load")]))
        reply = await (self.answer_streamed if call.stream else self.answer_whole)(call, exchange)
        if stages:
            reply = await repair.apply_stages(call, reply, stages)
        return reply.noting(params=notes_text(plan.notes)) if plan.notes else reply

    def plan_exchange(
        self, call: Call, ask: Chat | Complete, info: ModelInfo, pins: Pins
    ) -> tuple[Exchange, list[Stage]]:
        """How to request the answer, and the stages that repair it."""
        if isinstance(ask, Chat):
            exchange = Exchange(
                "/api/chat", ollama_chat.plan(info.name, ask, call.stream, pins, info), ChatReader(call.model)
            )
        else:
            plan = ollama_generate.plan(info.name, ask, call.stream, pins, info)
            exchange = Exchange("/api/generate", plan, GenerateReader(call.model))
        if exchange.plan.notes and self.strict:
            raise strict_refusal(next(iter(exchange.plan.notes)))
        return exchange, repair.stages_of(exchange.plan, call.stream)

    async def answer_whole(self, call: Call, exchange: Exchange) -> Reply:
        """Request one JSON document: to wake up for each token of the answer would cost more than all the rest."""
        response = await self.http.send(exchange.path, exchange.plan.body, call)
        try:
            document = await self.http.read(response)
        finally:
            response.close()
        events = exchange.reader.read(document)
        if not exchange.reader.done:
            raise UpstreamError("Ollama's answer ended before it was complete.", "cut")
        return whole(events, {})

    async def answer_streamed(self, call: Call, exchange: Exchange) -> Reply:
        response = await self.http.send(exchange.path, exchange.plan.body, call)
        return await begun(Reply.of(self.events(response, exchange.reader)).on_close(response.close))

    async def events(self, response: Connection, reader: ChatReader) -> Events:
        lines = ollama_lines.Lines(self.http.most)
        while data := await self.http.part(response):
            for line in lines.feed(data):
                for event in reader.read(line) if line else ():
                    yield event
            if reader.done:
                await self.http.drain(response)
                return
        if lines.rest.strip():
            for event in reader.read(lines.rest):
                yield event
        if not reader.done:
            raise UpstreamError("Ollama's answer ended before it was complete.", "cut")

    async def embed(self, call: Call, ask: Embed, info: ModelInfo) -> Reply:
        if info.can("embedding") is False:
            message = f"The model '{call.model}' does not make embeddings."
            raise BadCall(message, param="model", code="model_not_capable")
        await self.loader.ensure_loaded(info, self.pins(info.name), call.progress)
        return await in_batches(ask, self.settings.embed_batch, partial(self.batch, call, ask, info))

    async def batch(self, call: Call, ask: Embed, info: ModelInfo, inputs: tuple[str, ...]) -> tuple[Vectors, Usage]:
        body = ollama_chat.embed_body(info.name, inputs, ask.dimensions, self.pins(info.name))
        response = await self.http.send("/api/embed", body, call)
        try:
            return ollama_lines.vectors_of(await self.http.read(response), len(inputs))
        finally:
            response.close()


def origin_of(url: str, services: Services) -> Origin:
    origin = Origin(url)
    services.opened.callback(origin.close)
    return origin
