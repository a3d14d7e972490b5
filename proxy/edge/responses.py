"""OpenAI's responses, as another dialect of the chain `chat`.  The plugin `stored` stores them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson
from aiohttp import web
from msgspec.structs import replace

from proxy.config import Config
from proxy.edge.attachments import Attachments
from proxy.edge.body import check_notes, parsed, read_text, reading
from proxy.edge.calls import ChainInputs, call_of, ignored_headers
from proxy.edge.document import Document
from proxy.edge.exchange import exchange_of
from proxy.edge.images import Images
from proxy.edge.writer import Writer
from proxy.errors import BadCall, NotFound, ProxyError
from proxy.estimates import LETTERS, letters
from proxy.types import JSON, Chat, Image, Receipt, Route
from proxy.wire import openai_attached
from proxy.wire.openai_attached import Attached
from proxy.wire.openai_items import Item, with_pictures
from proxy.wire.openai_messages import Limits
from proxy.wire.openai_response_fields import AskedResponse
from proxy.wire.openai_responses import read_response
from proxy.wire.openai_responses_out import ResponseStyle

ABSENT: Final[Mapping[str, str]] = {
    "/v1/responses/compact": "nothing is compacted; 'truncation': 'auto' leaves out the oldest exchanges, "
    "and a conversation may have them summarised",
}
"""OpenAI's endpoints that are not supported, and what to use instead."""
COUNT: Final = "input_tokens"
UNSEEN: Final = ("previous_response_id", "conversation", "prompt")
"""Fields that refer to content which only plugins have, so it cannot be counted here."""
EACH: Final = 4
"""Approximate number of tokens that a message adds to those of its text."""


@dataclass(frozen=True, slots=True)
class Responses:
    """own: for each chain, what its plugins declared; see `Own`."""

    config: Config
    writer: Writer
    images: Images
    attachments: Attachments
    own: Mapping[str, ChainInputs]
    limits: Limits

    def routes(self) -> Iterable[Route]:
        """The endpoints; those whose chain is not configured are left out."""
        if "chat" in self.config.chains:
            yield Route("POST", "/v1/responses", self.create, "user")
            yield Route("POST", f"/v1/responses/{COUNT}", self.count, "user")
            for path in ABSENT:  # otherwise they would be taken for ids of responses
                yield Route("POST", path, self.absent, "user")

    async def absent(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix(self.config.listen.base_path)
        raise NotFound(f"{path} of OpenAI's is not served here; {ABSENT[path]}.", code="unknown_url")

    async def count(self, request: web.BaseRequest) -> web.StreamResponse:
        """An estimate of a request's prompt tokens: only the model could count them exactly."""
        body = await read_text(request, self.config.requests)
        asked = await reading(body, partial(self.counted, body))
        notes = {**ignored_headers(request, self.config), **asked.notes, COUNT: "emulated"}
        check_notes(notes, self.config.params)
        told = {"object": "response.input_tokens", COUNT: estimated(asked.chat())}
        return Document(orjson.dumps(told), exchange_of(request).telling(notes))

    def counted(self, body: bytes) -> AskedResponse:
        """A request of which only the tokens are counted, so it need not name a model."""
        given = parsed(body, self.config.requests)
        for name in UNSEEN if type(given) is dict else ():
            if given.get(name) is not None:
                message = f"'{name}' is not supported here, since its contents are not counted: send the items."
                raise BadCall(message, param=name, code="unsupported_parameter")
        named = {**given, "model": given.get("model") or "any"} if type(given) is dict else given
        return read_response(named, self.limits, self.own["chat"].fields)

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        own, body = self.own["chat"], await read_text(request, self.config.requests)
        asked, chat = await self.read(request, body)
        head = asked.head(int(time.time()))
        call = call_of(request, "chat", asked, chat, asked.stream, own)
        exchange_of(request).spelled = asked.spelled
        ask, items = await self.fetched(chat, asked.items)  # after `call_of` has checked permissions
        receipt = Receipt(head, items, spelled=asked.spelled)
        call = call.but(ask=ask, receipt=receipt, deadline=None if asked.background else call.deadline)
        deferred = asked.background and not asked.stream
        style = ResponseStyle(head, receipt.complete, deferred=deferred, spelled=asked.spelled)
        try:
            return await self.writer.answer(request, call, style, asked.notes)
        except ProxyError as error:
            error.renamed(asked.spelled(error.param))
            raise

    async def read(self, request: web.BaseRequest, body: bytes) -> tuple[AskedResponse, Chat]:
        """The request with its files replaced by their contents.  Raises BadCall naming the field."""
        given, files, (asked, chat) = await reading(body, partial(self.first, body))
        if not files:
            return asked, chat
        call_of(
            request, "chat", asked, chat, asked.stream, self.own["chat"]
        )  # checks permissions before files are read
        await self.attachments.put(files, exchange_of(request).caller)  # only if the rest is valid
        told, whole = await reading(body, partial(self.checked, given))
        return told, replace(whole, question=chat.question.strip())

    def first(self, body: bytes) -> tuple[JSON, Sequence[Attached], tuple[AskedResponse, Chat]]:
        """The parsed body, the files in it, and the request before their contents are known."""
        given = parsed(body, self.config.requests)
        return given, openai_attached.of_items(given), self.checked(given)

    def checked(self, given: JSON) -> tuple[AskedResponse, Chat]:
        asked = read_response(given, self.limits, self.own["chat"].fields)
        check_notes(asked.notes, self.config.params)
        return asked, asked.chat()

    async def fetched(self, chat: Chat, items: Sequence[Item]) -> tuple[Chat, Sequence[Item]]:
        """Both with links replaced by their images, which could have changed when the stored response is used again."""
        if not self.images.linked(chat):
            return chat, items
        full = await self.images.fetched(chat, "input")
        return full, with_pictures(items, dict(zip(links(chat), pictures(full), strict=True)))


def estimated(chat: Chat) -> int:
    """Approximate number of tokens of a prompt."""
    return -(-letters(chat) // LETTERS) + EACH * len(chat.messages)


def links(chat: Chat) -> list[str]:
    return [one.url for message in chat.messages for one in message.images]


def pictures(chat: Chat) -> list[Image]:
    return [one for message in chat.messages for one in message.images]
