"""`/api/ollama/generate`: one prompt and its answer, with the other fields of OpenAI's chat API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from proxy.config import Config
from proxy.edge.body import check_notes, read_json
from proxy.edge.calls import ChainInputs, call_of
from proxy.edge.exchange import exchange_of
from proxy.edge.writer import Writer
from proxy.errors import ProxyError
from proxy.types import Route
from proxy.wire import openai_chat, prompt
from proxy.wire.openai_messages import Limits


@dataclass(frozen=True, slots=True)
class Prompt:
    """own: for each chain, what its plugins declared; see `Own`."""

    config: Config
    writer: Writer
    own: Mapping[str, ChainInputs]
    limits: Limits

    def routes(self) -> Iterable[Route]:
        if "chat" in self.config.chains:
            yield Route("POST", "/api/ollama/generate", self.generate, "user")

    async def generate(self, request: web.BaseRequest) -> web.StreamResponse:
        own, body = self.own["chat"], prompt.chat_of(await read_json(request, self.config.requests))
        asked = openai_chat.read_chat(body, self.limits, own.fields)
        check_notes(asked.notes, self.config.params)
        call = call_of(request, "chat", asked, asked.chat(), asked.stream, own)
        exchange = exchange_of(request)
        style = prompt.Style(asked.model, told=lambda: exchange.facts)
        try:
            return await self.writer.answer(request, call, style, asked.notes)
        except ProxyError as error:
            error.renamed(prompt.spelled(error.param))
            raise
