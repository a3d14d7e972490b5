"""The endpoints for callers' own templates: create, change and delete them, export and import them as YAML."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from plugins.templates import yamltext
from plugins.templates.api import Said, document
from plugins.templates.document import Document, check_alias
from plugins.templates.store import Store, missing
from plugins.templates.writing import Change, Writing
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.host import Host
from proxy.types import JSON, Route
from proxy.wire import read

YAML: Final = "application/yaml"
CONTENT: Final = ("messages", "template")
"""Fields that make a change a new version."""
LARGEST: Final = 10**9


class Body(BaseModel):
    """The raw fields of a template; they are validated after flags and aliases have been taken out."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Which(Strict):
    name: Said | None = None


class Into(Strict):
    """public: whether everybody may use the imported templates."""

    public: bool = False


class Custom:
    def __init__(self, store: Store, writing: Writing, host: Host) -> None:
        self.store = store
        self.writing = writing
        self.host = host

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/templates/custom", self.create, "user")
        yield Route("PUT", "/api/templates/custom/{id}", self.change, "user")
        yield Route("DELETE", "/api/templates/custom/{id}", self.remove, "user")
        yield Route("GET", "/api/templates/export", self.export, "user")
        yield Route("POST", "/api/templates/import", self.take_in, "user")

    def caller(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def body(self, request: web.BaseRequest) -> dict[str, JSON]:
        return dict((await self.host.requests.form(request, Body)).model_extra or {})

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await self.body(request)
        change = change_of(body)
        if change.document is None:
            change = Change(checked(body), change.public, change.aliases)
        return document(await self.writing.create(self.caller(request), change))

    async def change(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        body, caller = await self.body(request), self.caller(request)
        if any(name in body for name in CONTENT) and "name" not in body:
            found = await self.store.found(id, caller)
            if found is None or found.owner != caller:
                raise missing(id)
            body["name"] = found.name
        return document(await self.writing.change(caller, id, change_of(body)))

    async def remove(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        await self.writing.remove(self.host.requests.caller(request), id)
        return document({"id": id, "deleted": True})

    async def export(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Which)
        found = await self.store.exported(self.caller(request), asked.name)
        if asked.name is not None and not found:
            raise missing(asked.name)
        text = await asyncio.to_thread(yamltext.write, found)
        return web.Response(text=text, content_type=YAML)

    async def take_in(self, request: web.BaseRequest) -> web.StreamResponse:
        """The body is YAML, in the format of `export`."""
        asked = self.host.requests.query(request, Into)
        text = await self.host.requests.text(request, "yaml")
        try:
            documents = await asyncio.to_thread(yamltext.read, "body", text)  # a large one would block the event loop
        except yamltext.Unreadable as error:
            raise invalid(error.problems) from None
        return document({"imported": await self.writing.take_in(self.caller(request), documents, asked.public)})


def change_of(body: Mapping[str, JSON]) -> Change:
    """The change that a body describes; its document is None if it has no template.  Raises BadCall."""
    rest = dict(body)
    flags = [rest.pop(name) for name in ("public", "is_public") if name in rest]
    public = read.flag(flags[0], "public") if flags and flags[0] is not None else None
    aliases = aliases_of(rest.pop("aliases", None))
    if not rest:
        return Change(None, public, aliases)
    return Change(checked(rest), public, aliases)


def checked(body: Mapping[str, JSON]) -> Document:
    """Raises BadCall with all problems."""
    if "version" in body:
        raise BadCall("The server numbers the versions: leave 'version' out.", param="version", code="invalid_value")
    try:
        return Document.model_validate(body)
    except ValidationError as error:
        found = list(yamltext.faults(error))
        place = ".".join(map(str, found[0][0]))[:200] or None
        raise invalid([words for _, words in found], place) from None


def invalid(problems: list[str], param: str | None = None) -> BadCall:
    told = "; ".join(problems[:20])[:4000]
    return BadCall(f"Invalid template: {told}.", param=param, code="invalid_template")


def aliases_of(given: JSON) -> dict[str, int | None]:
    """A list moves its aliases to the newest version; a mapping moves each to its version, or deletes it if null."""
    if given is None:
        return {}
    if isinstance(given, list):
        given = dict.fromkeys([read.text(one, f"aliases[{index}]") for index, one in enumerate(given)], 0)
        return {alias_of(alias): 0 for alias in given}
    told: dict[str, Any] = read.mapping(given, "aliases")
    return {
        alias_of(alias): None if version is None else read.whole(version, f"aliases.{alias[:80]}", 1, LARGEST)
        for alias, version in told.items()
    }


def alias_of(alias: str) -> str:
    try:
        return check_alias(alias)
    except ValueError as error:
        raise BadCall(f"Invalid 'aliases': {error}.", param="aliases", code="invalid_value") from None
