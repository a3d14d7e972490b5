"""The cache's endpoints: statistics and removal of entries, for callers of their own, for admins of all."""

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
"""Entries deleted at once."""
PAUSE: Final = 100
"""Entries scanned before the event loop gets a turn: there may be hundreds of thousands."""


LONGEST: Final = 10_000
"""Maximum characters of a pattern: searching an entry for it blocks the event loop."""

Said = Annotated[str, Field(min_length=1)]


class Clear(Strict):
    """Whose entries are cleared."""

    caller: str | None = None
    """A caller's name, for admins; unset is everybody's for admins, and their own for others."""


class ClearExpired(Strict):
    """Has no fields, so that any given one is refused."""


class Invalidate(Strict):
    """Which entries are removed: those that match all given criteria, of which at least one is required."""

    key: Said | None = None
    model: Said | None = None
    caller: Said | None = None
    older_than: NonNegativeFloat | None = None
    """Seconds."""
    text: Annotated[str, Field(min_length=1, max_length=LONGEST)] | None = None
    """Text that the prompt contains, ignoring case; `*` matches anything."""
    confirm: bool = False
    """Unless true, nothing is removed; the answer says how many entries would be."""

    @model_validator(mode="after")
    def _something(self) -> Invalidate:
        if (self.key, self.model, self.caller, self.older_than, self.text) == (None,) * 5:
            raise ValueError("select entries by key, model, caller, older_than or text; to remove all, use clear")
        return self


EVERYTHING: Final = Invalidate.model_construct()


@dataclass(frozen=True, slots=True)
class Api:
    """common: whether all callers share their entries, so that only admins may remove any.

    written: returns when all answers so far are in the store; otherwise later writes would escape a removal.
    cleared: called with what is removed, so that answers still being generated are not cached afterwards.
    """

    store: KeyValue
    stats: Stats
    host: Host
    common: bool
    written: Callable[[], Awaitable[None]]
    cleared: Callable[[str, Callable[[Entry], bool]], None]
    more: Callable[[], dict[str, JSON]]
    """Gives further statistics, for admins."""

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/api/cache/stats", self.statistics, "user")
        yield Route("POST", "/api/cache/clear", self.clear, "user")
        yield Route("POST", "/api/cache/clear-expired", self.clear_expired, "user")
        yield Route("POST", "/api/cache/invalidate", self.invalidate, "user")

    def place(self, alone: bool) -> dict[str, JSON]:
        """Names the worker that answers, if there are several and the answer covers this one only."""
        place = self.host.services.worker_info
        return {"worker": place.index, "workers": place.count} if alone and place.count > 1 else {}

    @property
    def own(self) -> bool:
        """Whether the store is this process's own, so that other workers' entries cannot be reached."""
        return isinstance(self.store, Memory)

    def prefix(self, request: web.BaseRequest, named: str | None) -> str:
        """The key prefix of the entries that a request may see.  named: the caller it asks for.

        Raises Denied, or BadCall if entries are shared and cannot be selected by caller.
        """
        caller = self.host.requests.caller(request)
        if caller.is_admin:
            if named is not None and self.common:
                message = "Callers share all entries (share: global): they cannot be selected by caller."
                raise BadCall(message, param="caller", code="invalid_value")
            return f"cache:{key.VERSION}:" if named is None else key.prefix_of("cache", named)
        if named is not None and named != caller.name:
            raise Denied("Only admins may name other callers.", code="insufficient_permissions")
        return key.prefix_of("cache", caller.name)

    async def statistics(self, request: web.BaseRequest) -> web.StreamResponse:
        """The size of the entries that this caller may see; for admins also the counts since the server started."""
        told = {**self.stats.as_json(), **self.more()} if self.host.requests.caller(request).is_admin else {}
        await self.written()
        try:
            kept = await self.kept(self.prefix(request, None))
        except StoreError:  # the counts are still returned
            kept = {"entries": None, "bytes": None, "entries_by_model": None}
        return document({**kept, **told, **self.place(self.own or bool(told))})

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """The store's entries, with regular turns for the event loop."""
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
        asked = await self.host.requests.form(request, Clear)
        prefix = self.prefix(request, asked.caller)
        self.cleared(prefix, everything)
        async with available(self.written):
            return document({"deleted": await self.removed(prefix, EVERYTHING), **self.place(self.own)})

    async def clear_expired(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.host.requests.form(request, ClearExpired)
        async with available(self.written):
            return document({"deleted": await self.store.expire(), **self.place(self.own)})

    async def invalidate(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await self.host.requests.form(request, Invalidate)
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
    """Wait until pending answers are written, then use the store.  Raises Busy while it cannot be used."""
    await written()
    try:
        yield
    except StoreError as error:
        raise Busy(f"The cache's store cannot be used at the moment: {error}.", code="store_unavailable") from error


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model: Ollama's names may omit `:latest`."""
    return one.lower().removesuffix(":latest") == other.lower().removesuffix(":latest")


def contains(words: str, pattern: str) -> bool:
    """Whether the words match a pattern with `*`, in a single pass however many `*` it has."""
    words, at = words.lower(), 0
    for part in filter(None, pattern.lower().split("*")):
        at = words.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def document(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
