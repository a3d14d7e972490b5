"""Caches answers and returns them for identical calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Final, Literal

from pydantic import PositiveFloat, PositiveInt

from plugins.cache import entry, key
from plugins.cache.api import Api
from plugins.cache.caller_data import CallerAnswers
from plugins.cache.directives import CONTROL, FIELD, TTL, Directives, NotKept, directives_of
from plugins.cache.entry import Entry
from plugins.cache.flight import Flight, name_of
from plugins.cache.invalidations import Invalidations
from plugins.cache.outbox import EntryPlace, Item, Outbox
from plugins.cache.semantic import Question, Semantic
from plugins.cache.semantic import Settings as SemanticSettings
from plugins.cache.stats import Stats
from plugins.cache.vectors import CachingTerms, Vectors, only_key
from proxy.announcements import Rated
from proxy.config import Strict
from proxy.errors import UpstreamError
from proxy.host import Host
from proxy.stores.keyvalue import Instant, NewValue, StoreError
from proxy.streams import whole
from proxy.types import JSON, Call, Embed, Handler, Reply, Route, Text

MOST_FLIGHTS: Final = 10_000
"""Maximum number of concurrent shared generations; calls beyond it are generated without being shared."""
MOST_STAMPS: Final = 1000
RECENT: Final = 1.0
"""Seconds for which a model's stamp is reused without looking it up again."""
PATIENCE: Final = 0.25
"""Timeout in seconds for looking up a model's stamp, if an earlier one is known to fall back on."""
BYPASS: Final = "bypass"
UNKNOWN: Final[tuple[float, str | None]] = (float("-inf"), None)


class Cache:
    """Caches answers and gives them again when exactly the same is asked; equal calls at once share one generation.

    Only complete answers are cached, never errors, streams that broke off, or answers of a fallback model.
    """

    place = "keeps"
    fields = flags = frozenset({FIELD})
    headers = frozenset({CONTROL, TTL})

    class Settings(Strict):
        store: str = "memory"
        """A store under `stores:`; `memory` is always available."""
        ttl: PositiveFloat = 3600.0
        """Seconds for which an answer is cached, unless the request says otherwise."""
        max_ttl: PositiveFloat = 86_400.0
        """The most seconds that a request may ask for."""
        max_entry_bytes: PositiveInt = 1024 * 1024
        """Maximum bytes of a cached answer."""
        share: Literal["caller", "global"] = "caller"
        """Who gets a cached answer: only the caller to whom it was first given, or everybody."""
        sampled: Literal["cache", "skip"] = "cache"
        """Whether random answers are cached: those to calls with no `seed` and a `temperature` that is not 0."""
        keep_length: bool = False
        """Whether answers are cached that ended at their token limit."""
        semantic: SemanticSettings | None = None
        """Also answers questions that mean the same in other words; unset is off."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.clock = host.clock
        self.store = host.keyvalue(settings.store)
        self.instant = self.store if isinstance(self.store, Instant) else None
        self.stats = host.process_state("cache stats", Stats)
        self.flights = host.process_state("cache flights", dict[str, Flight])
        self.outbox = host.process_state("cache outbox", lambda: Outbox(host.services))
        self.stamps: dict[str, tuple[float, str]] = {}
        self.keys = key.Keys()
        self.invalidations = host.process_state("cache invalidations", lambda: Invalidations(host.clock))
        self.vectors = Vectors(self.store, self.stats, self.invalidations, host)
        self.semantic = (
            None if settings.semantic is None else Semantic(settings.semantic, host, self.store, self.tenant)
        )
        host.on(Rated, self.rated)
        if settings.share == "caller":
            host.register_caller_data(CallerAnswers(self.store, self.outbox.written, self.invalidations.add))

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        self.host.models.check(call)  # another API key of the same caller may have cached what this one may not use
        directives = directives_of(call)
        stamp = None
        if directives.keeps and (self.settings.sampled == "cache" or key.repeats(call)):
            stamp = self.recent(call.model) or await self.stamp(call.model)
        if stamp is None:  # without a stamp, an answer can be neither cached nor shared
            return await self.bypassed(call, call_next, directives)
        tenant = self.tenant(call.caller)
        if call.tags and (upstream := call.tags.get("upstream")):  # another plugin has chosen the upstream
            stamp = f"{stamp} {upstream}"
        told, digest = self.keys.of(call, stamp)
        where = key.prefix_of("cache", tenant) + digest
        if isinstance(call.ask, Embed):
            where += f":{directives.only}:{directives.oldest}"  # a shared call applies its first caller's directives
            terms = CachingTerms(stamp, tenant, self.ttl(directives))
            call_next = partial(self.vectors.answered, call_next, directives, terms)
            digest = only_key(call, call.ask, stamp)
        elif directives.reads and (kept := await self.found(where, directives, call, digest)) is not None:
            self.keys.remember(call, stamp, told, digest)
            return kept
        near = None if self.semantic is None else await self.near(where, call, directives, stamp, tenant)
        if near is not None and (kept := await self.like(near, directives, call, call_next)) is not None:
            return kept
        if directives.only and not isinstance(call.ask, Embed):
            raise NotKept
        place = EntryPlace(where, call, tenant, told, self.ttl(directives), stamp, name_of(where, call))
        flying = self.flying(place) if directives.reads else None
        reply = await (flying.joined(call) if flying is not None else self.begun(place, call_next, near))
        return self.noted(call, reply, digest)

    def noted(self, call: Call, reply: Reply, digest: str) -> Reply:
        facts = {"cache": "miss", **reply.facts}
        if digest:
            facts["cache-key"] = digest
        self.stats.note(facts.get("model", call.model), facts["cache"])
        return Reply(reply.events, facts, reply.closers)

    async def bypassed(self, call: Call, call_next: Handler, directives: Directives) -> Reply:
        if directives.only:
            raise NotKept
        reply = await call_next(call)
        self.stats.note(reply.facts.get("model", call.model), BYPASS)  # after the call: an unknown model is not counted
        return reply.noting(cache=BYPASS)

    def recent(self, model: str) -> str | None:
        """The model's stamp, if it was looked up less than `RECENT` seconds ago."""
        until, last = self.stamps.get(model, UNKNOWN)
        return last if until > self.clock.monotonic() else None

    async def stamp(self, model: str) -> str | None:
        """The model's stamp; while its upstream does not answer, the last known one, so that cache hits still work."""
        _, last = self.stamps.get(model, UNKNOWN)
        try:
            async with asyncio.timeout(None if last is None else PATIENCE):
                stamp = await self.host.models.stamp(model)
        except (TimeoutError, UpstreamError):
            stamp = last  # remembered below, so that the next calls do not wait for the timeout again
        if len(self.stamps) >= MOST_STAMPS:
            self.stamps.clear()
        if stamp is not None:
            self.stamps[model] = (self.clock.monotonic() + RECENT, stamp)
        return stamp

    def tenant(self, caller: str) -> str:
        return caller if self.settings.share == "caller" else ""

    def ttl(self, directives: Directives) -> float:
        return min(directives.ttl or self.settings.ttl, self.settings.max_ttl)

    async def found(self, where: str, directives: Directives, call: Call, digest: str) -> Reply | None:
        """The cached answer, if there is one and it is not older than the call allows."""
        if self.instant is not None:
            answer = entry.of_kept(self.instant.look(where))
        else:
            outbox, store = self.outbox, self.store
            answer = (
                outbox.get(store, where) or await self.looked_up(where) or outbox.get(store, where)
            )  # the call may have ended during the lookup
        if answer is None:
            return None
        found, born = answer
        age = max(0.0, self.clock.time() - born)
        if directives.oldest is not None and age > directives.oldest:
            return None
        model = found.facts.get("model", call.model)
        self.stats.note(model, "hit")
        if (usage := entry.usage_of(found.events)) is not None:
            self.stats.saved(model, usage, found.seconds)
        events = entry.in_pieces(found.events) if call.stream else found.events
        return whole(events, {**found.facts, "cache": "hit", "age": str(int(age)), "cache-key": digest})

    async def looked_up(self, where: str) -> tuple[Entry, float] | None:
        try:
            (kept,) = await self.store.get((where,))
        except StoreError:  # logged by the store; the call continues without the cache
            self.failed()
            return None
        return entry.of_kept(kept)

    def flying(self, place: EntryPlace) -> Flight | None:
        """The generation in progress that the call can join; None if its entry was cleared after it began."""
        name = place.flight
        if (flying := self.flights.get(name)) is None:
            return None
        if self.invalidations.took(flying.began, place.where, partial(place.label, place.call.model)):
            del self.flights[name]
            return None
        return flying

    def begun(self, place: EntryPlace, call_next: Handler, near: Question | None) -> Awaitable[Reply]:
        """Start a generation that others can join; gives the reply for its first caller."""
        flight = Flight.of(self.clock.monotonic(), partial(self.keep, place, near), place.call.deadline)
        reply = flight.begun_by(place.call, call_next, self.host.background)
        if not flight.over and len(self.flights) < MOST_FLIGHTS:
            self.flights.setdefault(place.flight, flight)
        return reply

    def keep(self, place: EntryPlace, near: Question | None, flight: Flight) -> None:
        """Called when a flight can no longer be joined: cache its answer if complete and not cleared meanwhile."""
        if self.flights.get(place.flight) is flight:
            del self.flights[place.flight]
        if not flight.over or flight.error is not None or isinstance(place.call.ask, Embed):
            return
        facts, said = flight.facts, flight.events
        if not (entry.is_of(facts, place.stamp) and entry.complete(said, self.settings.keep_length)):
            return
        model = facts.get("model", place.call.model)
        if self.invalidations.last and self.invalidations.took(flight.began, place.where, partial(place.label, model)):
            return
        largest = self.settings.max_entry_bytes
        seconds = self.clock.monotonic() - flight.began
        answer = Entry(said, entry.stored_facts(facts), seconds)  # type: ignore[arg-type]  # no vectors, see `Embed` above
        if self.instant is None:
            self.outbox.put(Item(self.store, place, answer, self.clock.time(), largest, self.failed))
        elif len(packed := answer.pack()) <= largest:
            self.instant.put(NewValue(place.where, packed, place.ttl, place.label(model)))
        if near is not None and self.semantic is not None:
            self.semantic.learn(near, place.where)

    # --- similar questions -----------------------------------------------------------------------------

    async def near(self, where: str, call: Call, directives: Directives, stamp: str, tenant: str) -> Question | None:
        """The call's question as a vector, to find similar ones; None if that is off or refused, or a flight exists."""
        if self.semantic is None or not directives.reads or where in self.flights:
            return None
        return await self.semantic.near(where, call, stamp, tenant)

    async def like(self, near: Question, directives: Directives, call: Call, call_next: Handler) -> Reply | None:
        """The cached answer to a question that means the same, if there is one and the call accepts its age."""
        if self.semantic is None:
            return None
        for where, cosine in await self.semantic.found(near, call.caller):
            reply = await self.found(where, directives, call, where.rpartition(":")[2])
            if reply is None:
                self.semantic.lost(near, where)
                continue
            self.semantic.gave(call, near, where)
            if self.semantic.audits():
                self.host.background.start(self.audited(call, call_next, near, where), "auditing an answer")
            return reply.noting(**{"cache-similarity": f"{cosine:.4f}"})
        return None

    async def audited(self, call: Call, call_next: Handler, near: Question, where: str) -> None:
        """Check a semantic hit against a new answer; if it was wrong, this question does not get it again."""
        kept = self.outbox.get(self.store, where) or await self.looked_up(where)
        if self.semantic is None or kept is None:
            return
        given = "".join(event.text for event in kept[0].events if isinstance(event, Text) and event.choice == 0)
        if not await self.semantic.audit(call, call_next, given):
            await self.semantic.wrong(call, near, where)

    def failed(self) -> None:
        self.stats.note("", "error")

    def rated(self, one: Rated) -> None:
        """Remove an answer that its caller rated down, and veto the pair if it was a semantic hit."""
        if self.semantic is not None and one.rating == "down":
            self.semantic.refused(one.caller, one.call)
        if one.rating == "down" and one.cache_key:
            where = key.prefix_of("cache", self.tenant(one.caller)) + one.cache_key
            self.host.background.start(self.drop(where), "taking a bad answer out of the cache")

    async def drop(self, where: str) -> None:
        await self.outbox.written()
        try:
            await self.store.delete([where])
        except StoreError:
            self.failed()

    async def __aenter__(self) -> Cache:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.outbox.written()

    def routes(self) -> Iterable[Route]:
        return Api(
            self.store,
            self.stats,
            self.host,
            self.settings.share == "global",
            self.outbox.written,
            self.invalidations.add,
            self.more,
        ).routes()

    def more(self) -> dict[str, JSON]:
        """Further statistics: those of the semantic cache, if it is on."""
        return {} if self.semantic is None else {"semantic": self.semantic.state.stats()}
