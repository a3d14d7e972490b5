"""Looking into the cache, and taking things out of it: owners their own, admins all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

import orjson
from aiohttp import web
from pydantic import Field, NonNegativeFloat, model_validator

from plugins.cache import key
from plugins.cache.invalidations import everything
from plugins.cache.stats import Stats
from proxy.config import Strict
from proxy.errors import BadCall, Busy, Denied
from proxy.host import Host
from proxy.stores.keyvalue import Entry, KeyValue, StoreError
from proxy.stores.memory import Memory
from proxy.types import JSON, Route

BATCH: Final = 1000
"""Entries taken out at once."""
PAUSE: Final = 100
"""Entries that are looked at before others may go on: there may be hundreds of thousands."""


LONGEST: Final = 10_000
"""Characters of a pattern: every entry is looked through for it, and others wait meanwhile."""

Said = Annotated[str, Field(min_length=1)]


class Clear(Strict):
    """Whose entries are cleared."""

    caller: str | None = None
    """A caller's name, for admins; unset is everybody's for admins, and their own for others."""


class ClearExpired(Strict):
    """It has no fields: whoever names one wants something else."""


class Invalidate(Strict):
    """Which entries go; all that is said must fit, and something must be."""

    key: Said | None = None
    model: Said | None = None
    caller: Said | None = None
    older_than: NonNegativeFloat | None = None
    """Seconds."""
    text: Annotated[str, Field(min_length=1, max_length=LONGEST)] | None = None
    """What the prompt contains, whatever the case of its letters; `*` stands for anything."""
    confirm: bool = False
    """Unless true nothing is taken out, and the answer says how many would be."""

    @model_validator(mode="after")
    def _something(self) -> Invalidate:
        if (self.key, self.model, self.caller, self.older_than, self.text) == (None,) * 5:
            raise ValueError("select entries by key, model, caller, older_than or text; to remove all, use clear")
        return self


EVERYTHING: Final = Invalidate.model_construct()


@dataclass(frozen=True, slots=True)
class Api:
    """common: all callers share their entries, so that only admins may take any out.

    written: returns when what was answered by now is in the store; else it would be missed here, and come afterwards.
    cleared: told what is taken out, so that what is under way does not come afterwards either.
    """

    store: KeyValue
    stats: Stats
    host: Host
    common: bool
    written: Callable[[], Awaitable[None]]
    cleared: Callable[[str, Callable[[Entry], bool]], None]
    more: Callable[[], dict[str, JSON]]
    """Further counts, for admins."""

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/cache/stats", self.told, "user")
        yield Route("POST", "/api/cache/clear", self.clear, "user")
        yield Route("POST", "/api/cache/clear-expired", self.clear_expired, "user")
        yield Route("POST", "/api/cache/invalidate", self.invalidate, "user")

    def place(self, alone: bool) -> dict[str, JSON]:
        """Of several workers the one that answers, where this is of it alone."""
        place = self.host.services.place
        return {"worker": place.index, "workers": place.count} if alone and place.count > 1 else {}

    @property
    def own(self) -> bool:
        """Whether every process has a store of its own, so that others are not reached from this one."""
        return isinstance(self.store, Memory)

    def prefix(self, request: web.BaseRequest, named: str | None) -> str:
        """What the keys begin with that this caller may see.  Raises Denied."""
        caller = self.host.desk.caller(request)
        if caller.is_admin:
            if named is not None and self.common:
                message = "Callers share all entries (share: global): they cannot be selected by caller."
                raise BadCall(message, param="caller", code="invalid_value")
            return f"cache:{key.VERSION}:" if named is None else key.prefix_of("cache", named)
        if named is not None and named != caller.name:
            raise Denied("Only admins may name other callers.", code="insufficient_permissions")
        return key.prefix_of("cache", caller.name)

    async def told(self, request: web.BaseRequest) -> web.StreamResponse:
        """Counts of the server since its start, and the entries that this caller may see."""
        told = {**self.stats.told(), **self.more()} if self.host.desk.caller(request).is_admin else {}
        await self.written()
        try:
            kept = await self.kept(self.prefix(request, None))
        except StoreError:  # the counts are told all the same
            kept = {"entries": None, "bytes": None, "entries_by_model": None}
        return document({**kept, **told, **self.place(self.own or bool(told))})

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """Those in the store; nobody else waits until all were looked at."""
        count = 0
        async for one in self.store.entries(prefix):
            yield one
            if (count := count + 1) % PAUSE == 0:
                await asyncio.sleep(0)

    async def kept(self, prefix: str) -> dict[str, JSON]:
        models: dict[str, dict[str, int]] = {}
        async for one in self.entries(prefix):
            of_model = models.setdefault(str(key.facts_of(one.label).get("model", "")), {"entries": 0, "bytes": 0})
            of_model["entries"] += 1
            of_model["bytes"] += one.size
        whole = {name: sum(one[name] for one in models.values()) for name in ("entries", "bytes")}
        return {**whole, "entries_by_model": models}

    async def clear(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await self.host.desk.form(request, Clear)
        prefix = self.prefix(request, asked.caller)
        self.cleared(prefix, everything)
        async with available(self.written):
            return document({"deleted": await self.removed(prefix, EVERYTHING), **self.place(self.own)})

    async def clear_expired(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.host.desk.form(request, ClearExpired)
        async with available(self.written):
            return document({"deleted": await self.store.expire(), **self.place(self.own)})

    async def invalidate(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await self.host.desk.form(request, Invalidate)
        prefix = self.prefix(request, asked.caller)
        if asked.confirm:
            self.cleared(prefix, partial(self.fits, asked=asked))
        async with available(self.written):
            if asked.confirm:
                matched = deleted = await self.removed(prefix, asked)
            else:
                matched = len([one async for one in self.entries(prefix) if self.fits(one, asked)])
                deleted = 0
        told = {"matched": matched, "deleted": deleted, "confirmed": asked.confirm}
        return document({**told, **self.place(self.own)})

    async def removed(self, prefix: str, asked: Invalidate) -> int:
        deleted, going = 0, []
        async for one in self.entries(prefix):
            if self.fits(one, asked):
                going.append(one.key)
            if len(going) >= BATCH:
                deleted, going = deleted + await self.store.delete(going), []
        return deleted + await self.store.delete(going)

    def fits(self, one: Entry, asked: Invalidate) -> bool:
        if asked.key is not None and not one.key.endswith(f":{asked.key}"):
            return False
        if asked.older_than is not None and self.host.clock.time() - one.born <= asked.older_than:
            return False
        if asked.model is not None and not same_model(str(key.facts_of(one.label).get("model", "")), asked.model):
            return False
        return asked.text is None or contains(key.words_in(one.label), asked.text)


@asynccontextmanager
async def available(written: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """The store with everything in it.  Raises Busy while it is away."""
    await written()
    try:
        yield
    except StoreError as error:
        raise Busy(f"The cache's store cannot be used at the moment: {error}.", code="store_unavailable") from error


def same_model(one: str, other: str) -> bool:
    """Ollama's names may leave out `:latest`."""
    return one.lower().removesuffix(":latest") == other.lower().removesuffix(":latest")


def contains(words: str, pattern: str) -> bool:
    """One pass over the words, however many `*` there are."""
    words, at = words.lower(), 0
    for part in filter(None, pattern.lower().split("*")):
        at = words.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def document(told: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(told), content_type="application/json")
