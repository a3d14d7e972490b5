"""OpenAI's responses: one more dialect of the chain `chat`.  What is kept of them is a plugin's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web
from msgspec.structs import replace

from proxy.config import Config
from proxy.edge.attachments import Attachments
from proxy.edge.body import check_notes, read_json
from proxy.edge.calls import Own, call_of
from proxy.edge.document import Document
from proxy.edge.exchange import exchange_of
from proxy.edge.images import Images
from proxy.edge.writer import Writer
from proxy.errors import BadCall, NotFound, ProxyError
from proxy.estimates import LETTERS, letters
from proxy.types import JSON, Chat, Image, Receipt, Route
from proxy.wire import openai_attached
from proxy.wire.openai_items import Item, with_pictures
from proxy.wire.openai_messages import Limits
from proxy.wire.openai_response_fields import AskedResponse
from proxy.wire.openai_responses import read_response
from proxy.wire.openai_responses_out import ResponseStyle

ABSENT: Final[Mapping[str, str]] = {
    "/v1/responses/compact": "nothing is compacted; 'truncation': 'auto' leaves out the oldest exchanges, "
    "and a conversation may have them summarised",
}
"""Endpoints of OpenAI's that are not here, and what is."""
COUNT: Final = "input_tokens"
UNSEEN: Final = ("previous_response_id", "conversation", "prompt")
"""Fields that stand for what only a plugin knows."""
EACH: Final = 4
"""Tokens that a message takes besides its words, about."""


@dataclass(frozen=True, slots=True)
class Responses:
    """own: by chain, what its plugins declared as theirs."""

    config: Config
    writer: Writer
    images: Images
    attachments: Attachments
    own: Mapping[str, Own]
    limits: Limits

    def routes(self) -> Iterable[Route]:
        """A route without a chain is off."""
        if "chat" in self.config.chains:
            yield Route("POST", "/v1/responses", self.create, "user")
            yield Route("POST", f"/v1/responses/{COUNT}", self.count, "user")
            for path in ABSENT:  # else they would be responses of these names
                yield Route("POST", path, self.absent, "user")

    async def absent(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix(self.config.listen.base_path)
        raise NotFound(f"{path} of OpenAI's is not served here; {ABSENT[path]}.", code="unknown_url")

    async def count(self, request: web.BaseRequest) -> web.StreamResponse:
        """How long a prompt would be, by an estimate: only the model that reads it could count."""
        body = await read_json(request, self.config.requests)
        for name in UNSEEN if type(body) is dict else ():
            if body.get(name) is not None:
                message = f"'{name}' is not supported here, since its contents are not counted: send the items."
                raise BadCall(message, param=name, code="unsupported_parameter")
        named = {**body, "model": body.get("model") or "any"} if type(body) is dict else body
        asked = read_response(named, self.limits, self.own["chat"].fields)
        notes = {**asked.notes, COUNT: "emulated"}
        check_notes(notes, self.config.params)
        told = {"object": "response.input_tokens", COUNT: estimated(asked.chat())}
        return Document(orjson.dumps(told), exchange_of(request).telling(notes))

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        own, body = self.own["chat"], await read_json(request, self.config.requests)
        asked, chat = await self.read(request, body)
        head = asked.head(int(time.time()))
        call = call_of(request, "chat", asked, chat, asked.stream, own)
        exchange_of(request).spelled = asked.spelled
        ask, items = await self.fetched(chat, asked.items)  # nothing is fetched for those who may not ask
        receipt = Receipt(head, items, spelled=asked.spelled)
        call = call.but(ask=ask, receipt=receipt, deadline=None if asked.background else call.deadline)
        deferred = asked.background and not asked.stream
        style = ResponseStyle(head, receipt.complete, deferred=deferred, spelled=asked.spelled)
        try:
            return await self.writer.answer(request, call, style, asked.notes)
        except ProxyError as error:
            error.renamed(asked.spelled(error.param))
            raise

    async def read(self, request: web.BaseRequest, body: JSON) -> tuple[AskedResponse, Chat]:
        """With what its files say in it, which is kept in their place.  Raises BadCall naming a field."""
        files = openai_attached.of_items(body)
        asked, chat = self.checked(body)
        if not files:
            return asked, chat
        call_of(request, "chat", asked, chat, asked.stream, self.own["chat"])  # nothing is read for who may not ask
        await self.attachments.put(files, exchange_of(request).caller)  # not before it is known that all else is right
        told, whole = self.checked(body)
        return told, replace(whole, question=chat.question.strip())

    def checked(self, body: JSON) -> tuple[AskedResponse, Chat]:
        asked = read_response(body, self.limits, self.own["chat"].fields)
        check_notes(asked.notes, self.config.params)
        return asked, asked.chat()

    async def fetched(self, chat: Chat, items: Sequence[Item]) -> tuple[Chat, Sequence[Item]]:
        """Both with linked pictures in them: what is kept must be the same when it is read again."""
        if not self.images.linked(chat):
            return chat, items
        full = await self.images.fetched(chat, "input")
        return full, with_pictures(items, dict(zip(links(chat), pictures(full), strict=True)))


def estimated(chat: Chat) -> int:
    """Tokens of a prompt, about."""
    return -(-letters(chat) // LETTERS) + EACH * len(chat.messages)


def links(chat: Chat) -> list[str]:
    return [one.url for message in chat.messages for one in message.images]


def pictures(chat: Chat) -> list[Image]:
    return [one for message in chat.messages for one in message.images]
