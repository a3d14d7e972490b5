"""OpenAI's endpoints for stored chat completions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from aiohttp import web
from pydantic import ConfigDict, Field

from plugins.stored.answers import COMPLETION, StoredAnswer
from plugins.stored.paging import Page, document, listed, page_of
from plugins.stored.store import Store, Wanted
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.host import Host
from proxy.types import JSON, Route

PAIR: Final = re.compile(r"metadata\[(.+)\]", re.DOTALL)


class Search(Page):
    """A page of a filtered list; `metadata[name]=value` may be given several times."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None

    def wanted(self) -> Wanted:
        """The filters.  Raises BadCall for an unknown field."""
        metadata: dict[str, str] = {}
        for name, value in (self.model_extra or {}).items():
            if (pair := PAIR.fullmatch(name)) is None:
                raise BadCall(f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
            metadata[pair[1]] = str(value)
        return Wanted(self.after, self.limit, self.order, self.model, metadata)


Name = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class Description(Strict):
    metadata: Annotated[dict[Name, Value], Field(max_length=16)] | None
    """Replaces the metadata; null removes it."""


@dataclass(frozen=True, slots=True)
class Completions:
    store: Store
    host: Host

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/v1/chat/completions", self.list, "user")
        yield Route("GET", "/v1/chat/completions/{id}", self.get, "user")
        yield Route("POST", "/v1/chat/completions/{id}", self.describe, "user")
        yield Route("DELETE", "/v1/chat/completions/{id}", self.delete, "user")
        yield Route("GET", "/v1/chat/completions/{id}/messages", self.messages, "user")

    def owner(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted = self.host.requests.query(request, Search).wanted()
        kept, more = await self.store.page(self.owner(request), COMPLETION, wanted)
        return document(listed([one.document for one in kept], more))

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return document((await self.store.get(self.owner(request), COMPLETION, id)).document)

    async def describe(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form = await self.host.requests.form(request, Description)
        return document((await self.store.describe(self.owner(request), id, form.metadata or {})).document)

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        await self.store.delete(self.owner(request), COMPLETION, id)
        return document({"object": "chat.completion.deleted", "id": id, "deleted": True})

    async def messages(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        page = self.host.requests.query(request, Page)
        kept = await self.store.get(self.owner(request), COMPLETION, id, "input")
        return document(page_of(list(messages_of(kept)), page))


def messages_of(kept: StoredAnswer) -> Iterator[dict[str, JSON]]:
    """The messages of the request; content in parts goes into `content_parts`, as with OpenAI."""
    for index, message in enumerate(kept.input):
        parts: Mapping[str, JSON] = {}
        if isinstance(message.get("content"), list):
            parts = {"content": None, "content_parts": message["content"]}
        yield {"content": None, **message, **parts, "id": f"{kept.id}-{index}"}
