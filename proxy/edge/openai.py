"""OpenAI's endpoints: chat completions, completions, embeddings, models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote

from aiohttp import web
from msgspec.structs import replace

from proxy.config import Config
from proxy.edge.attachments import Attachments
from proxy.edge.body import check_notes, parsed, read_json, read_text, reading
from proxy.edge.body_cache import BodyCache
from proxy.edge.calls import ChainInputs, call_of
from proxy.edge.exchange import exchange_of
from proxy.edge.images import Images, pictured
from proxy.edge.model_lists import Shown
from proxy.edge.tokens import decoded
from proxy.edge.writer import Writer, in_time
from proxy.errors import NotFound, ProxyError
from proxy.host import Models
from proxy.types import JSON, Chat, Handler, Receipt, Route
from proxy.wire import openai_attached, openai_chat, openai_completions, openai_embeddings, openai_models
from proxy.wire.openai_answer import ChatStyle
from proxy.wire.openai_attached import Attached
from proxy.wire.openai_completions import CompletionStyle
from proxy.wire.openai_fields import Asked
from proxy.wire.openai_kept import head_of
from proxy.wire.openai_messages import Limits


@dataclass(frozen=True, slots=True)
class OpenAI:
    """own: for each chain, what its plugins declared; see `Own`."""

    config: Config
    send: Handler
    writer: Writer
    models: Models
    images: Images
    attachments: Attachments
    own: Mapping[str, ChainInputs]
    limits: Limits
    shown: Shown
    known: BodyCache[tuple[Asked, Chat]] = field(default_factory=BodyCache)

    def routes(self) -> Iterable[Route]:
        """The endpoints; those whose chain is not configured are left out."""
        if "chat" in self.config.chains:
            yield Route("POST", "/v1/chat/completions", self.chat, "user")
        if "completions" in self.config.chains:
            yield Route("POST", "/v1/completions", self.completions, "user")
        if "embeddings" in self.config.chains:
            yield Route("POST", "/v1/embeddings", self.embeddings, "user")
        yield Route("GET", "/v1/models", self.list_models, "user")
        yield Route("GET", "/v1/models/{id:.+}", self.one_model, "user")

    async def chat(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await read_text(request, self.config.requests)
        asked, chat = self.known.get(body) or await self.read(request, body)
        call = call_of(request, "chat", asked, chat, asked.stream, self.own["chat"])
        if self.images.linked(chat):
            call = call.but(ask=await self.images.fetched(chat))
        style = ChatStyle(asked.model, asked.include_usage, asked.legacy_functions)
        if asked.about.get("store"):
            given = parsed(body, self.config.requests)
            call = call.but(receipt=Receipt(head_of(style, given), given["messages"]))
        return await self.writer.answer(request, call, style, asked.notes)

    async def read(self, request: web.BaseRequest, body: bytes) -> tuple[Asked, Chat]:
        """Parse and check a body.  Raises BadCall, which names the field."""
        given, files, read = await reading(body, partial(self.first, body))
        if files:
            asked, chat = read
            call_of(
                request, "chat", asked, chat, asked.stream, self.own["chat"]
            )  # checks permissions before files are read
            await self.attachments.put(files, exchange_of(request).caller)  # and only if the rest is valid
            told, whole = await reading(body, partial(self.checked, given))
            return told, replace(whole, question=chat.question.strip())
        if not pictured(read[1]):
            self.known.put(body, read)
        return read

    def first(self, body: bytes) -> tuple[JSON, Sequence[Attached], tuple[Asked, Chat]]:
        """The parsed body, the files in it, and the request before their contents are known."""
        given = parsed(body, self.config.requests)
        return given, openai_attached.of_chat(given), self.checked(given)

    def checked(self, given: JSON) -> tuple[Asked, Chat]:
        own = self.own["chat"]
        asked = openai_chat.read_chat(given, self.limits, own.fields, own.brings)
        check_notes(asked.notes, self.config.params)
        return asked, asked.chat()

    async def completions(self, request: web.BaseRequest) -> web.StreamResponse:
        own, body = self.own["completions"], await read_json(request, self.config.requests)
        asked = openai_completions.read_completion(body, self.limits, own.fields)
        check_notes(asked.notes, self.config.params)
        prompts = await decoded(asked.tokens, "prompt") if asked.tokens else asked.prompts
        call = call_of(request, "completions", asked, asked.complete(prompts), asked.stream, own)
        echoed = tuple(prompts) if asked.echo else ()
        style = CompletionStyle(asked.model, asked.include_usage, echoed, asked.n)
        try:
            return await self.writer.answer(request, call, style, asked.notes)
        except ProxyError as error:
            openai_completions.renamed(error)
            raise

    async def embeddings(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange, limits = exchange_of(request), self.config.requests
        own, body = self.own["embeddings"], await read_json(request, self.config.requests)
        asked = openai_embeddings.read_embeddings(body, limits.max_inputs, own.fields, limits.max_depth)
        check_notes(asked.notes, self.config.params)
        exchange.model, exchange.route = asked.model, "embeddings"
        texts = await decoded(asked.tokens, "input") if asked.tokens else asked.texts
        call = call_of(request, "embeddings", asked, asked.embed(texts), False, own)
        answer = await in_time(self.send, call, exchange)
        written = openai_embeddings.write_embeddings(asked.model, answer, asked.base64)
        return web.Response(body=written, headers=exchange.telling(asked.notes))

    async def list_models(self, request: web.BaseRequest) -> web.StreamResponse:
        body = openai_models.write_models(await self.shown.to(exchange_of(request).caller))
        return web.Response(body=body, content_type="application/json")

    async def one_model(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        name = unquote(id)  # clients send a `/` in a name as %2F, some of them twice
        caller = exchange_of(request).caller
        listed = next((one for one in await self.shown.to(caller) if one.name == name), None)
        info = listed or await self.models.info(name, caller.models)
        if info is None:
            message = f"The model '{name[:200]}' does not exist or you do not have access to it."
            raise NotFound(message, param="model", code="model_not_found")
        return web.Response(body=openai_models.write_model(info), content_type="application/json")
