"""The endpoints for figures of calls: users see their own, admins everybody's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Final, Literal

from aiohttp import web
from pydantic import Field, model_validator

from plugins.usage import figures
from plugins.usage.figures import DAY, MICRO, NOTHING, Window, WithUser, document
from plugins.usage.writer import Writer
from proxy.host import Host
from proxy.types import JSON, Route

Days = Annotated[int, Field(ge=1, le=3660)]
BUCKETS: Final = {"minute": 60, "hour": 3600, "day": DAY}
MOST: Final = {"minute": 1, "hour": 62, "day": 3660}
"""Maximum days of a series."""
USUAL: Final = {"minute": 1, "hour": 7, "day": 30}


class Asked(WithUser):
    """The number of days, including today, in UTC."""

    days: Days = 7
    model: str | None = None

    def window(self, now: float, caller: str | None) -> Window:
        until = int(now) - int(now) % DAY + DAY
        return Window(until - self.days * DAY, until, DAY, caller, (self.model and (self.model,)) or None)


class Series(WithUser):
    """A point per bucket, for the last `days` times 24 hours."""

    bucket: Literal["minute", "hour", "day"] = "hour"
    days: Days | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Series:
        if self.days is not None and self.days > MOST[self.bucket]:
            raise ValueError(f"{self.bucket}s are available for up to {MOST[self.bucket]} days")
        return self

    def window(self, now: float, caller: str | None) -> Window:
        span = BUCKETS[self.bucket]
        until = int(now) - int(now) % span + span
        since = until - (self.days or USUAL[self.bucket]) * DAY
        return Window(since, until, span, caller, (self.model and (self.model,)) or None)


class Api:
    def __init__(self, writer: Writer, host: Host) -> None:
        self.writer = writer
        self.host = host

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/metrics/dashboard", self.dashboard, "user")
        yield Route("GET", "/api/metrics/timeseries", self.timeseries, "user")
        yield Route("GET", "/api/metrics/models", self.models, "user")
        yield Route("GET", "/api/metrics/endpoints", self.endpoints, "user")
        yield Route("GET", "/api/metrics/templates", self.templates, "user")
        yield Route("GET", "/api/metrics/errors", self.errors, "user")

    def window(self, request: web.BaseRequest, kind: type[Asked] | type[Series]) -> Window:
        asked = self.host.requests.query(request, kind)
        caller = figures.whose(self.host.requests.caller(request), asked.user)
        window = asked.window(self.host.clock.time(), caller)
        return replace(window, models=figures.recorded(window.models, self.host.models.real))

    async def dashboard(self, request: web.BaseRequest) -> web.StreamResponse:
        window = self.window(request, Asked)
        models = await figures.read(self.host.database, window, "model")
        found = added(models)
        by_model = [
            {
                "model": one["model"] or None,
                "requests": one["calls"],
                "share": figures.ratio(one["calls"], found["calls"]),
                "avg_duration": figures.milliseconds(one["total_us"], one["answered"]),
                "avg_tps": figures.ratio(one["generated_tokens"] * MICRO, one["eval_us"], 2),
            }
            for one in sorted(models, key=lambda one: (-one["calls"], one["model"]))
        ]
        return document(
            {**span(window), **figures.figures_as_json(found), "by_model": by_model, **self.records(request)}
        )

    def records(self, request: web.BaseRequest) -> dict[str, JSON]:
        """For admins, about this process: records that are not written yet, and records that were lost."""
        admin = self.host.requests.caller(request).is_admin
        place = self.host.services.worker_info
        where = {"worker": place.index, "workers": place.count}
        return {"pending": self.writer.pending, "lost": self.writer.lost, **where} if admin else {}

    async def timeseries(self, request: web.BaseRequest) -> web.StreamResponse:
        window = self.window(request, Series)
        found = {one["start"] // MICRO: one for one in await figures.read(self.host.database, window, "start")}
        starts = range(window.since, window.until, window.span)
        points = [{"start": at, **figures.figures_as_json(found.get(at, NOTHING))} for at in starts]
        return document({**span(window), "bucket_seconds": window.span, "points": points})

    async def models(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.by(request, "model", "models")

    async def endpoints(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.by(request, "route", "endpoints")

    async def templates(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.by(request, "template", "templates")

    async def by(self, request: web.BaseRequest, column: str, name: str) -> web.StreamResponse:
        window = self.window(request, Asked)
        found = await figures.read(self.host.database, window, column)
        rows = [{NAMES[column]: one[column] or None, **figures.figures_as_json(one)} for one in found]
        return document({**span(window), name: rows})

    async def errors(self, request: web.BaseRequest) -> web.StreamResponse:
        """By code and model; `client_left` is listed, too, although it does not count as an error."""
        window = self.window(request, Asked)
        columns = ("calls", "failed", "left_early")
        found = await figures.read(self.host.database, window, "error", "model", columns=columns)
        calls, failed = sum(one["calls"] for one in found), sum(one["failed"] for one in found)
        rows = [
            {"error": one["error"], "model": one["model"] or None, "requests": one["calls"]}
            for one in sorted(found, key=lambda one: -one["calls"])
            if one["error"]
        ]
        rate = figures.ratio(failed, calls)
        return document({**span(window), "total_requests": calls, "errors": failed, "error_rate": rate, "kinds": rows})


NAMES: Final = {"model": "model", "route": "endpoint", "template": "template"}
"""The columns' names in answers; the value is null for calls without one."""


def added(parts: Iterable[figures.Found]) -> figures.Found:
    """The total of several sums; `+` also adds bins, which are text."""
    whole = dict(NOTHING)
    for one in parts:
        for name in whole:
            whole[name] += one[name]
    return whole


def span(window: Window) -> dict[str, JSON]:
    return {"since": window.since, "until": window.until, "user": window.caller}
