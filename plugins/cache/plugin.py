"""Keeps answers, and gives them again to whoever asks exactly the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, Literal

from pydantic import PositiveFloat, PositiveInt

from plugins.cache import entry, key
from plugins.cache.api import Api
from plugins.cache.entry import Entry
from plugins.cache.flight import Flight, Keep
from plugins.cache.holding import Answers
from plugins.cache.stats import Stats
from plugins.cache.vectors import Vectors
from plugins.cache.wishes import CONTROL, FIELD, TTL, NotKept, Wishes, wishes_of
from proxy.config import Strict
from proxy.errors import UpstreamError
from proxy.host import Host
from proxy.news import Rated
from proxy.stores.keyvalue import Kept, New, StoreError
from proxy.streams import replay
from proxy.types import Call, Embed, Handler, Reply, Route

MOST_FLIGHTS: Final = 10_000
"""Generations that may be shared at the same time; what begins beyond is nobody else's."""
MOST_STAMPS: Final = 1000
RECENT: Final = 1.0
"""Seconds for which a model is not asked after again."""
PATIENCE: Final = 0.25
"""Seconds that an upstream may take to tell what it has, where that was known before."""
BYPASS: Final = "bypass"


class Cache:
    """Keeps answers, and gives them again to whoever asks exactly the same; equal calls at once share one generation.

    Only complete answers are kept, never errors, streams that broke off, or answers of a fallback model.
    """

    place = "keeps"
    fields = frozenset({FIELD})
    headers = frozenset({CONTROL, TTL})

    class Settings(Strict):
        store: str = "memory"
        """A store under `stores:`; `memory` is there without being named."""
        ttl: PositiveFloat = 3600.0
        """Seconds that an answer is kept, unless the request says otherwise."""
        max_ttl: PositiveFloat = 86_400.0
        """Seconds that a request may ask for at most."""
        max_entry_bytes: PositiveInt = 1024 * 1024
        """Bytes of the largest answer that is kept."""
        share: Literal["caller", "global"] = "caller"
        """Who gets an answer again: only the caller that it was given to, or everybody."""
        sampled: Literal["cache", "skip"] = "cache"
        """Whether answers are kept that the caller left to chance (no `seed`, and a `temperature` that is not 0)."""
        keep_length: bool = False
        """Whether answers are kept that ended because of their limit of tokens."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.store = host.keyvalue(settings.store)
        self.stats = host.kept("cache stats", Stats)
        self.flights = host.kept("cache flights", dict[str, Flight])
        self.stamps: dict[str, tuple[float, str]] = {}
        self.vectors = Vectors(self.store, host)
        host.on(Rated, self.rated)
        if settings.share == "caller":
            host.holds(Answers(self.store))

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        self.host.models.check(call)  # what is kept for a caller's other key may not be this one's
        wishes = wishes_of(call)
        stamp = await self.stamp(call.model) if self.may(call, wishes) else None
        if stamp is None:
            if wishes.only:
                raise NotKept
            self.stats.note(call.model, BYPASS)
            return (await call_next(call)).noting(cache=BYPASS)
        tenant = self.tenant(call.caller)
        if call.tags:
            stamp = f"{stamp} {call.tags.get('upstream', '')}"  # another plugin has chosen the place
        told = key.told_of(key.asked_of(call), call.route, stamp)
        digest = key.key_of(told)
        where = key.prefix_of("cache", tenant) + digest
        if isinstance(call.ask, Embed):
            where += f":{wishes.only}:{wishes.oldest}"  # what is shared is looked up by its first caller's wishes
            call_next = partial(self.vectors.answered, call_next, wishes, self.ttl(wishes), stamp, tenant)
        elif wishes.reads and (kept := await self.found(where, wishes, call, digest)) is not None:
            return kept
        if wishes.only and not isinstance(call.ask, Embed):
            raise NotKept
        if wishes.reads and (flight := self.flights.get(where)) is not None and not flight.abandoned:
            reply = await flight.joined(call)
            self.stats.note(reply.facts.get("model", call.model), "shared")
            return reply.noting(**{"cache": "shared", "cache-key": digest})
        reply = await self.generated(
            where, call, call_next, partial(self.keep, where, call, self.ttl(wishes), tenant, told)
        )
        outcome = reply.facts.get("cache", "miss")
        self.stats.note(reply.facts.get("model", call.model), outcome)
        return reply.noting(**{"cache": outcome, "cache-key": digest})

    async def stamp(self, model: str) -> str | None:
        """The model's, or the last one known while its upstream does not answer: what is kept is still good."""
        now = self.host.clock.monotonic()
        until, last = self.stamps.get(model, (float("-inf"), None))
        if until > now:
            return last
        try:
            async with asyncio.timeout(None if last is None else PATIENCE):
                stamp = await self.host.models.stamp(model)
        except (TimeoutError, UpstreamError):
            return last
        if len(self.stamps) >= MOST_STAMPS:
            self.stamps.clear()
        if stamp is not None:
            self.stamps[model] = (now + RECENT, stamp)
        return stamp

    def may(self, call: Call, wishes: Wishes) -> bool:
        """Whether an answer to this call could be kept or shared at all."""
        return wishes.keeps and (self.settings.sampled == "cache" or key.repeats(call))

    def tenant(self, caller: str) -> str:
        return caller if self.settings.share == "caller" else ""

    def ttl(self, wishes: Wishes) -> float:
        return min(wishes.ttl or self.settings.ttl, self.settings.max_ttl)

    async def found(self, where: str, wishes: Wishes, call: Call, digest: str) -> Reply | None:
        """The kept answer, if there is one that is wanted."""
        kept = await self.looked_up(where)
        age = max(0.0, self.host.clock.time() - kept.born) if kept else 0.0
        if kept is None or (wishes.oldest is not None and age > wishes.oldest):
            return None
        found = entry.unpacked(kept.value)
        if found is None:
            return None
        self.stats.note(found.facts.get("model", call.model), "hit", entry.usage_of(found.events), found.seconds)
        events = entry.in_pieces(found.events) if call.stream else found.events
        return Reply.of(replay(events), **found.facts, cache="hit", age=str(int(age)), **{"cache-key": digest})

    async def looked_up(self, where: str) -> Kept | None:
        try:
            return (await self.store.get((where,)))[0]
        except StoreError:  # told by the store; the call goes on without the cache
            self.stats.note("", "error")
            return None

    async def generated(self, where: str, call: Call, call_next: Handler, keep: Keep) -> Reply:
        flight = Flight(self.host.clock.monotonic())
        flight.task = self.host.background.start(flight.run(call, call_next, keep), "generating a shared answer")
        other = self.flights.get(where)
        if (other is None or other.abandoned) and len(self.flights) < MOST_FLIGHTS:
            self.flights[where] = flight
            flight.task.add_done_callback(lambda _: self.forget(where, flight))
        return await flight.joined(call)

    def forget(self, where: str, flight: Flight) -> None:
        if self.flights.get(where) is flight:
            del self.flights[where]

    async def keep(self, where: str, call: Call, ttl: float, tenant: str, told: bytes, flight: Flight) -> None:
        if isinstance(call.ask, Embed) or not self.worth(flight):
            return
        seconds = self.host.clock.monotonic() - flight.began
        packed = Entry(flight.events, flight.facts, seconds).pack()
        if len(packed) <= self.settings.max_entry_bytes:
            label = key.label_of(call, flight.facts.get("model", call.model), tenant, told)
            await self.put([New(where, packed, ttl, label)])

    def worth(self, flight: Flight) -> bool:
        return "fallback" not in flight.facts and entry.complete(flight.events, self.settings.keep_length)

    def rated(self, one: Rated) -> None:
        """An answer that its caller found bad is not given again."""
        if one.rating == "down" and one.cache_key:
            where = key.prefix_of("cache", self.tenant(one.caller)) + one.cache_key
            self.host.background.start(self.drop(where), "taking a bad answer out of the cache")

    async def drop(self, where: str) -> None:
        try:
            await self.store.delete([where])
        except StoreError:
            self.stats.note("", "error")

    async def put(self, news: Sequence[New]) -> None:
        try:
            await self.store.set(news)
        except StoreError:
            self.stats.note("", "error")

    def routes(self) -> Iterable[Route]:
        return Api(self.store, self.stats, self.host, self.settings.share == "global").routes()
