"""Usage and costs in the shapes of OpenAI's administration API, for tools that read those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import Field, PositiveInt, model_validator

from plugins.usage import figures
from plugins.usage.figures import DAY, MICRO, Window, document
from plugins.usage.money import money
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.host import Host
from proxy.types import JSON, Route

WIDTHS: Final = {"1m": 60, "1h": 3600, "1d": DAY}
LIMITS: Final = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
"""Buckets per page: default and maximum."""
TOKENS: Final = ("calls", "prompt_tokens", "completion_tokens", "cached_tokens")
COLUMNS: Final = {"user_id": "caller", "api_key_id": "key_id", "model": "model", "line_item": "model"}
"""Groups that exist here, and their columns; grouping by anything else of OpenAI's gives null."""
Names = tuple[str, ...]
Second = Annotated[int, Field(ge=0, le=10**11)]
Parts = Iterable[Mapping[str, Any]]


class Asked(Strict):
    """The fields common to usage and costs.  Times are Unix seconds."""

    start_time: Second
    end_time: Second | None = None
    limit: PositiveInt | None = None
    page: Annotated[str, Field(pattern=r"^page_\d{1,12}$")] | None = None
    user_ids: Names | None = None
    api_key_ids: Names | None = None
    project_ids: Names | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Asked:
        if self.end_time is not None and self.end_time <= self.start_time:
            raise ValueError("`end_time` is after `start_time`")
        return self

    def windows(self, now: float, span: int, limits: tuple[int, int], routes: Sequence[str] | None) -> Window:
        """The time span of all buckets of the page.  Raises BadCall."""
        usual, most = limits
        if (self.limit or 0) > most:
            raise BadCall(f"Invalid 'limit': at most {most}.", param="limit", code="invalid_value")
        first = int(self.page.removeprefix("page_")) if self.page else self.start_time
        first -= first % span
        end = min(self.end_time or int(now) + 1, int(now) + span)
        until = max(first, min(end + -end % span, first + (self.limit or usual) * span))
        return Window(first, until, span, keys=self.api_key_ids, callers=self.user_ids, routes=routes)

    def more(self, now: float, window: Window) -> bool:
        return window.until < min(self.end_time or int(now) + 1, int(now) + 1)


class Usage(Asked):
    bucket_width: Literal["1m", "1h", "1d"] = "1d"
    group_by: tuple[
        Literal["project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source"], ...
    ] = ()
    models: Names | None = None
    batch: bool | None = None


class Spent(Asked):
    bucket_width: Literal["1d"] = "1d"
    group_by: tuple[Literal["project_id", "user_id", "line_item", "api_key_id", "api_source"], ...] = ()
    line_items: Names | None = None


class Organization:
    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/v1/organization/usage/completions", self.completions)
        yield Route("GET", "/v1/organization/usage/embeddings", self.embeddings)
        yield Route("GET", "/v1/organization/costs", self.costs)

    async def completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.usage(request, ("chat", "completions", "internal"), completion)

    async def embeddings(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.usage(request, ("embeddings",), embedding)

    async def usage(self, request: web.BaseRequest, routes: Names, tell: Tell) -> web.StreamResponse:
        asked = self.host.requests.query(request, Usage)
        now, width = self.host.clock.time(), asked.bucket_width
        window = asked.windows(now, WIDTHS[width], LIMITS[width], routes)
        window = with_models(window, self.recorded(asked.models), bool(asked.project_ids) or asked.batch is True)
        by = columns(asked.group_by)
        found = await figures.read(self.host.database, window, "start", *by, columns=TOKENS)
        return page(window, asked.more(now, window), found, lambda one: tell(one, by))

    async def costs(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Spent)
        now = self.host.clock.time()
        window = asked.windows(now, DAY, (7, 180), None)
        window = with_models(window, self.recorded(asked.line_items), bool(asked.project_ids))
        by = columns(asked.group_by)
        found = await figures.read(self.host.database, window, "start", "currency", *by, columns=("priced", "cost"))
        known = [one for one in found if one["currency"]]
        return page(window, asked.more(now, window), known, lambda one: cost(one, by, "line_item" in asked.group_by))

    def recorded(self, models: Names | None) -> Sequence[str] | None:
        return figures.recorded(models, self.host.models.real)


def with_models(window: Window, models: Sequence[str] | None, none: bool) -> Window:
    """none: select nothing, because the filter names something that does not exist here."""
    return Window(
        window.since, window.until, window.span, None, () if none else models, window.routes, window.keys,
        window.callers,
    )  # fmt: skip


def columns(group_by: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(COLUMNS[name] for name in group_by if name in COLUMNS))


Tell = Callable[[Mapping[str, Any], Sequence[str]], dict[str, JSON]]


def page(window: Window, more: bool, found: Parts, tell: Callable[[Mapping[str, Any]], JSON]) -> web.StreamResponse:
    """Every bucket of the window, including empty ones."""
    results: dict[int, list[JSON]] = {}
    for one in found:
        results.setdefault(one["start"] // MICRO, []).append(tell(one))
    data = [
        {"object": "bucket", "start_time": at, "end_time": at + window.span, "results": results.get(at, [])}
        for at in range(window.since, window.until, window.span)
    ]
    following = f"page_{window.until}" if more else None
    return document({"object": "page", "data": data, "has_more": more, "next_page": following})


def whose(one: Mapping[str, Any], by: Sequence[str]) -> dict[str, JSON]:
    """Null for columns that were not grouped by, and for calls without a value."""
    named = {
        name: (one.get(column) or None) if column in by else None
        for name, column in COLUMNS.items()
        if name != "line_item"
    }
    return {"project_id": None, **named}


def completion(one: Mapping[str, Any], by: Sequence[str]) -> dict[str, JSON]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": one["prompt_tokens"],
        "output_tokens": one["completion_tokens"],
        "input_cached_tokens": one["cached_tokens"],
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": one["calls"],
        **whose(one, by),
        "batch": None,
        "service_tier": None,
    }


def embedding(one: Mapping[str, Any], by: Sequence[str]) -> dict[str, JSON]:
    return {
        "object": "organization.usage.embeddings.result",
        "input_tokens": one["prompt_tokens"],
        "num_model_requests": one["calls"],
        **whose(one, by),
    }


def cost(one: Mapping[str, Any], by: Sequence[str], items: bool) -> dict[str, JSON]:
    """The value is null if no call had a price."""
    told, value = whose(one, by), money(one["cost"]) if one["priced"] else None
    return {
        "object": "organization.costs.result",
        "amount": {"value": value, "currency": one["currency"].lower()},
        "line_item": told.pop("model") if items else None,
        "quantity": None,
        **{name: value for name, value in told.items() if name != "model"},
    }
