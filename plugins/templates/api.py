"""The endpoints to list, show and render templates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Final

import orjson
from aiohttp import web
from pydantic import AliasChoices, Field

from plugins.templates.document import ModelName
from plugins.templates.lookup import Lookup, Wanted, summary
from plugins.templates.models import Answering
from plugins.templates.selection import FIELD, PREFIX, Selection, version_of
from plugins.templates.template import Template
from proxy.config import Strict
from proxy.errors import ProxyError
from proxy.host import Host
from proxy.types import JSON, Call, Chat, Message, Route
from proxy.wire import openai_turns

PAGE: Final = 100
MOST: Final = 200
"""Maximum templates of a page."""
Said = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Applied = Callable[[Call, Selection], Awaitable[Call]]


class Listed(Strict):
    """A page of templates, sorted by name.  after: the last name of the previous page."""

    category: Said | None = None
    search: Said | None = None
    limit: Annotated[int, Field(ge=1, le=MOST)] = PAGE
    after: Said | None = None

    def wanted(self) -> Wanted:
        return Wanted(self.category, self.search, self.after or "", self.limit)


class Most(Strict):
    limit: Annotated[int, Field(ge=1, le=MOST)] = 10


class One(Strict):
    version: Said | None = None


class Render(Strict):
    """A template with its variables.  generate: also call the model; stream: and stream its answer."""

    name: Annotated[Said, Field(validation_alias=AliasChoices("name", "template_name"))]
    version: Any = None
    variables: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies defaults)
    model: ModelName | None = None
    generate: bool = False
    stream: bool = False

    def selection(self) -> Selection:
        return Selection(self.name, version_of(self.version, "version"), self.variables, "name")


class Api:
    """applied: applies a template to a call.  most: maximum characters of a template's rendered messages."""

    def __init__(self, lookup: Lookup, host: Host, applied: Applied, most: int, answering: Answering) -> None:
        self.lookup = lookup
        self.host = host
        self.applied = applied
        self.most = most
        self.answering = answering

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/templates", self.listed, "user")
        yield Route("GET", "/api/templates/categories", self.categories, "user")
        yield Route("GET", "/api/templates/popular", self.popular, "user")
        yield Route("POST", "/api/templates/render", self.render, "user")
        yield Route("GET", "/api/templates/{name}", self.one, "user")
        yield Route("GET", "/api/templates/{name}/versions", self.versions, "user")

    def caller(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def listed(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Listed)
        found = await self.lookup.listed(asked.wanted(), self.caller(request))
        return document({"templates": found[: asked.limit], "has_more": len(found) > asked.limit})

    async def categories(self, request: web.BaseRequest) -> web.StreamResponse:
        found = await self.lookup.categories(self.caller(request))
        return document({"categories": [{"name": name, "templates": found[name]} for name in sorted(found)]})

    async def popular(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Most)
        return document({"templates": await self.lookup.popular(self.caller(request), asked.limit)})

    async def one(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        asked, caller = self.host.requests.query(request, One), self.caller(request)
        template = await self.lookup.find(name, version_of(asked.version, "version"), caller)
        return document(shown(template, caller))

    async def versions(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        return document(await self.lookup.versions(name, self.caller(request)))

    async def render(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await self.host.requests.form(request, Render)
        try:
            return await (self.generated if asked.generate else self.filled)(request, asked)
        except ProxyError as error:
            error.renamed(error.param and error.param.removeprefix(f"{FIELD}."))
            raise

    async def generated(self, request: web.BaseRequest, asked: Render) -> web.StreamResponse:
        told = [{"role": "user", "content": "-"}]  # a placeholder, replaced by the template's messages
        body = {"model": asked.model or f"{PREFIX}{asked.name}", "messages": told, "stream": asked.stream}
        call = (await self.host.chat(request, body)).but(ask=Chat(()))
        return await self.host.answer(request, await self.applied(call, asked.selection()))

    async def filled(self, request: web.BaseRequest, asked: Render) -> web.StreamResponse:
        selection = asked.selection()
        template = await self.lookup.find(selection.name, selection.version, self.caller(request), selection.param)
        chat = template.asked(Chat(()), selection.variables, self.most)
        models = self.host.requests.caller(request).models
        model = asked.model or await self.answering.named(template.document, models)
        return document({**rendered(template, chat), "model": model})


def shown(template: Template, caller: str) -> dict[str, JSON]:
    """Everything about a template, as JSON."""
    told = template.as_json
    parts = ("parameters", "schema", "example")
    source = "library" if not template.id else "own" if template.owner == caller else "public"
    messages = [one.model_dump() for one in template.document.messages]  # includes roles that are left at their default
    rest = {name: told[name] for name in parts if name in told}
    return {**summary(told, source, template.id), "messages": messages, **rest}


def rendered(template: Template, chat: Chat) -> dict[str, JSON]:
    """The messages as in a chat request, and as one text."""
    told: dict[str, JSON] = {
        "name": template.document.name,
        "version": template.document.version,
        "prompt": "\n\n".join(one.text for one in chat.messages),
        "messages": [written(one) for one in chat.messages],
        "parameters": dict(chat.options),
    }
    if chat.format is not None:
        told["response_format"] = openai_turns.response_format(chat.format)
    return told


def written(message: Message) -> dict[str, JSON]:
    return {"role": message.role, "content": message.text}


def document(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
