"""The endpoint that shows limits: callers see their own, admins see all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, NoReturn

import orjson
from aiohttp import web
from pydantic import Field

from plugins.limits.calendar import Calendar
from plugins.limits.counting import Counting
from plugins.limits.plan import NOTHING, Counted, Rules, counted_of, subject_of
from plugins.limits.reporting import money
from plugins.limits.rules import Which
from proxy.config import Strict
from proxy.errors import Busy, UpstreamError
from proxy.host import Host
from proxy.stores.counters import Verdict
from proxy.stores.keyvalue import StoreError
from proxy.types import JSON, Caller, Route

MOST: Final = 1000
WHICH: Final = ("match", "unless")


class Page(Strict):
    """Pagination of the limits, which are sorted by id.  after: an id."""

    limit: Annotated[int, Field(ge=1, le=MOST)] = 100
    after: str = ""


@dataclass(frozen=True, slots=True)
class Api:
    rules: Rules
    counting: Counting
    calendar: Calendar
    host: Host
    note: Callable[[], Awaitable[None]]
    """Stores the names of the counts that this process has used since the last time."""

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/limits", self.limits, "user")

    async def limits(self, request: web.BaseRequest) -> web.StreamResponse:
        """The limits and what remains of them, one entry per subject, sorted by id."""
        caller, page = self.host.requests.caller(request), self.host.requests.query(request, Page)
        try:
            await self.note()
            found = {self.shown(caller, one): one for one in await self.subjects(caller)}
            ids = sorted(one for one in found if one > page.after)
            data = await asyncio.gather(*(self.entry(caller, one, found[one]) for one in ids[: page.limit]))
        except StoreError as error:
            raise Busy(
                f"Limits cannot be looked up at the moment: {error}.", code="store_unavailable", wait=5.0
            ) from error
        last = data[-1]["id"] if data else None
        body = {"object": "list", "data": data, "has_more": len(ids) > page.limit, "last": last}
        return web.Response(body=orjson.dumps(body), content_type="application/json")

    async def subjects(self, caller: Caller) -> list[str]:
        """Recently counted subjects that this caller may see, and those that exist for every caller."""
        mine = {"caller": caller.name, "key": caller.key}
        names, models = await self.counting.counters.names(), await self.models(caller)
        found = {one for one in names if self.may_see(caller, one, models)}
        for rule in self.rules.rules.values():
            if {"model", "route"}.isdisjoint(rule.dimensions) and self.rules.applies(rule, mine):
                found.add(subject_of(rule, mine))
        return list(found)

    def shown(self, caller: Caller, subject: str) -> str:
        """The subject's id; for other callers a hash if the rule names callers or keys, which only admins may see."""
        rule, _ = self.rules.read(subject) or gone(subject)
        if caller.is_admin or not any((rule.match.caller, rule.match.key, rule.unless.caller, rule.unless.key)):
            return subject
        return hashlib.sha256(subject.encode()).hexdigest()[:32]

    async def models(self, caller: Caller) -> Collection[str]:
        """The models that this caller can see, by the names under which they are counted."""
        if caller.is_admin or not any(is_models(rule.dimensions) for rule in self.rules.rules.values()):
            return ()
        with suppress(UpstreamError):
            return {self.rules.named(one.name) for one in await self.host.models.all(caller.models)}
        return ()

    def may_see(self, caller: Caller, subject: str, models: Collection[str]) -> bool:
        """models: those that the caller can see; the names of others are known only to who used them."""
        if (read := self.rules.read(subject)) is None:
            return False
        rule, told = read
        mine = {"caller": caller.name, "key": caller.key}
        if caller.is_admin:
            return True
        if is_models(told) and told["model"] not in models:
            return False
        return self.rules.applies(rule, mine) and subject_of(rule, {**told, **mine}) == subject

    async def entry(self, caller: Caller, id: str, subject: str) -> JSON:
        rule, told = self.rules.read(subject) or gone(subject)
        counted = list(counted_of(rule, subject))
        claims = [one.claim(NOTHING, self.calendar) for one in counted]
        verdict, _, _ = await self.counting.taken(self.counting.counters, claims, "")
        limits = {one.quantity.name: self.figures(one, verdict, index) for index, one in enumerate(counted)}
        which = Which.model_fields if caller.is_admin else ("model", "route")
        said = {name: getattr(rule, name).model_dump(include=set(which), exclude_defaults=True) for name in WHICH}
        named = {name: patterns for name, patterns in said.items() if patterns}
        return {"id": id, "rule": {"per": rule.per, **named}, **told, "limits": limits}

    def figures(self, one: Counted, verdict: Verdict, index: int) -> JSON:
        """Money is text, because it is exact.  reset: seconds until nothing is counted, without further calls."""
        used = verdict.used[index]
        amounts: dict[str, JSON] = {"limit": one.most, "used": used, "remaining": max(0, one.most - used)}
        if one.quantity.unit == "money":
            amounts = {name: money(amount) for name, amount in amounts.items()}
        if one.quantity.period:
            return {**amounts, "reset": round(self.calendar.span(one.quantity.period).ends - self.calendar.time(), 3)}
        return {**amounts, "reset": round(verdict.whole[index], 3)} if one.quantity.window else amounts


def is_models(dimensions: Collection[str]) -> bool:
    """Whether a count covers all calls of a model, from whichever caller."""
    return "model" in dimensions and {"caller", "key"}.isdisjoint(dimensions)


def gone(subject: str) -> NoReturn:
    raise LookupError(subject)  # cannot happen: the subjects were filtered by `read` before
