"""The endpoints: admins manage experiments and read their results; callers record outcomes of their own calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from plugins.experiments.definition import Definition, Name, Text
from plugins.experiments.index import FILE, Experiment
from plugins.experiments.recording import Recording, Result
from plugins.experiments.registry import ExperimentRegistry
from plugins.experiments.results import results
from plugins.experiments.store import Conflict
from plugins.experiments.writer import Writer
from proxy.config import Strict
from proxy.forms import checked
from proxy.host import Host
from proxy.types import JSON, Route

PATH: Final = "/api/experiments"
MOVES: Final = {
    "start": ("active", ("draft", "paused")),
    "pause": ("paused", ("active",)),
    "stop": ("stopped", ("draft", "active", "paused")),
}
FIXED: Final = ("name", "variants", "match", "unit", "salt")
"""Fields that cannot be changed once the experiment has been started."""


class Create(Definition):
    """An experiment with its name, as a new one is created."""

    name: Name


class Body(BaseModel):
    """The raw fields of an experiment; they are validated after the missing ones have been filled in."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Page(Strict):
    """Pagination of the list, which is sorted by name.  after: the last name of the previous page."""

    limit: Annotated[int, Field(ge=1, le=200)] = 100
    after: Text | None = None


class Format(Strict):
    format: Literal["json", "csv"] = "json"


class Api:
    def __init__(self, registry: ExperimentRegistry, writer: Writer, host: Host) -> None:
        self.registry = registry
        self.writer = writer
        self.host = host
        self.recording = Recording(writer)

    def routes(self) -> Iterable[Route]:
        yield Route("POST", PATH, self.create)
        yield Route("GET", PATH, self.listed)
        yield Route("GET", f"{PATH}/{{id}}", self.one)
        yield Route("PUT", f"{PATH}/{{id}}", self.change)
        yield Route("DELETE", f"{PATH}/{{id}}", self.remove)
        yield Route("POST", f"{PATH}/{{id}}/start", self.start)
        yield Route("POST", f"{PATH}/{{id}}/pause", self.pause)
        yield Route("POST", f"{PATH}/{{id}}/stop", self.stop)
        yield Route("POST", f"{PATH}/{{id}}/results", self.record, "user")
        yield Route("GET", f"{PATH}/{{id}}/results", self.results)

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        made = checked(Create, (await self.host.requests.form(request, Body)).model_extra, strict=False)
        await self.registry.read()
        if made.name in self.registry.index.names:
            raise Conflict(f"There is an experiment '{made.name}' already.", param="name", code="experiment_exists")
        return await self.shown(await self.registry.store.create(made.name, made.bare()))

    async def listed(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Page)
        await self.registry.read()
        found = [experiment_as_json(one) for one in self.registry.index.all if one.name > (asked.after or "")]
        return document({"experiments": found[: asked.limit], "has_more": len(found) > asked.limit})

    async def one(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return await self.shown(id)

    async def shown(self, id: str) -> web.StreamResponse:
        return document(experiment_as_json(await self.registry.find(id)))

    async def change(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        body = dict((await self.host.requests.form(request, Body)).model_extra or {})
        was = changeable(await self.registry.find(id))
        made = checked(Create, {"name": was.name, **was.definition.as_json(), **body}, strict=False)
        check_change(was, made)
        if made.name != was.name and made.name in self.registry.index.names:
            raise Conflict(f"There is an experiment '{made.name}' already.", param="name", code="experiment_exists")
        await self.registry.store.change(was, made.name, made.bare())
        return await self.shown(was.id)

    async def remove(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        found = await self.registry.find(id)
        if found.source == FILE and found.id in self.registry.index.ids:
            changeable(found)
        if found.source != FILE and found.status == "active":
            raise Conflict("The experiment is active; stop it first.", code="experiment_active")
        await self.registry.store.remove(found.id)
        await self.registry.read()
        return document({"id": found.id, "deleted": True})

    async def start(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return await self.move(id, "start")

    async def pause(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return await self.move(id, "pause")

    async def stop(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return await self.move(id, "stop")

    async def move(self, id: str, verb: str) -> web.StreamResponse:
        found, (status, before) = changeable(await self.registry.find(id)), MOVES[verb]
        if found.status != status and not await self.registry.store.move(found.id, status, before):
            now = (await self.registry.find(found.id)).status
            final = ": to stop is final, make another one" if now == "stopped" else ""
            message = f"The experiment is '{now}', and cannot become '{status}'{final}."
            raise Conflict(message, code="experiment_status")
        return await self.shown(found.id)

    async def record(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form = await self.host.requests.form(request, Result)
        found = await self.registry.find(id)
        variant = await self.recording.record(found, form, self.host.requests.caller(request))
        return document({"experiment": found.name, "variant": variant, "metric_name": form.metric_name})

    async def results(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, Format)
        found = await self.registry.find(id)
        await self.writer.flush()
        whole = await results(self.host.database, found)
        if asked.format == "csv":
            name = {"Content-Disposition": f'attachment; filename="{found.name}.csv"'}
            return web.Response(text=whole.csv(), content_type="text/csv", charset="utf-8", headers=name)
        return document({**whole.as_json(), "lost": self.writer.lost})


def changeable(one: Experiment) -> Experiment:
    """The experiment itself.  Raises Conflict if it is defined in the configuration."""
    if one.source == FILE:
        message = f"The experiment '{one.name}' is defined in the configuration file; change it there."
        raise Conflict(message, code="experiment_in_file")
    return one


def check_change(was: Experiment, made: Create) -> None:
    """Raises Conflict for a change after which earlier and later figures could no longer be added up."""
    if was.status == "draft":
        return
    before = {"name": was.name, **{name: getattr(was.definition, name) for name in Definition.model_fields}}
    for name in before:
        if getattr(made, name) == before[name]:
            continue
        if was.status == "stopped" and name != "description":
            raise fixed(name, "it is stopped, which is final")
        if name in FIXED:
            raise fixed(name, "it has begun, and its figures would mix two experiments; make another one")
        if name == "traffic" and was.status == "active":
            raise fixed(name, "it is active, and units that come and go meanwhile would bias it; pause it first")


def fixed(name: str, why: str) -> Conflict:
    return Conflict(f"'{name}' of the experiment cannot be changed: {why}.", param=name, code="experiment_fixed")


def experiment_as_json(one: Experiment) -> dict[str, JSON]:
    times = {f"{name}_at": int(getattr(one, name)) or None for name in ("created", "started", "stopped")}
    return {
        "id": one.id,
        "name": one.name,
        "status": one.status,
        "source": one.source,
        **times,
        "stopped_variants": {name: {"at": int(stop.at), "why": stop.why} for name, stop in one.stops.items()},
        **one.definition.model_dump(mode="json"),
    }


def document(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
